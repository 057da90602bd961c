"""`tightwire methods` and the group itself."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from tests.command_line import refused, tightwire
from tightwire.catalogue import FAMILIES
from tightwire.cli import COMMANDS, application
from tightwire.cli.app import first_sentence
from tightwire.cli.methods import NO_STUDY, UNKNOWN, describe

MODEL = ("--gradients", "1MB", "--compute", "9ms", "--workers", "4", "--bandwidth", "1gbit")


def test_every_method_says_what_it_is_and_where_it_comes_from() -> None:
    rows = list(describe())
    assert {row["axis"] for row in rows} == set(FAMILIES)
    for row in rows:
        assert row["title"], row
        assert row["paper"] or row["name"] == "none", row
        assert all(row["combines_with"].values()), row


def test_every_method_has_the_claim_of_its_paper_and_what_studies_show_of_it() -> None:
    """A law: a new member fails until it says what its paper promises; where no study shows it, that is said."""
    families = (module for names in FAMILIES.values() for module in map(importlib.import_module, names))
    for member in (member for family in families for member in family.MEMBERS):
        own = vars(member)
        assert own.get("promise", "").endswith("."), member.name
        assert own.get("seen", ".").endswith("."), member.name
    rows = {row["name"]: row for row in describe()}
    assert rows["dense-every"]["seen"] == NO_STUDY
    for name in ("diloco", "dense-every"):
        said = " ".join(tightwire("methods", name).stdout.split())
        assert rows[name]["promise"] in said
        assert rows[name]["seen"] in said


def test_a_recipe_is_proven_as_its_stages_are() -> None:
    rows = {row["name"]: row["rate"] for row in describe()}
    assert rows["ef-signsgd"] == rows["gradient-dropping"] == "that of ef"
    assert rows["topk"].startswith("none alone; with feedback that of ef")
    assert rows["diloco"] == UNKNOWN


def test_every_method_says_how_fast_it_is_proven_to_be_or_that_it_is_not() -> None:
    done = tightwire("methods", "--rates")
    assert done.code == 0, done.stderr
    known = 0
    for row in describe():
        rate = row["rate"]
        assert row["name"] in done.stdout
        if isinstance(rate, dict):
            known += 1
            assert all(rate.values()), row["name"]
            assert " ".join(rate["bound"].split()[:1]) in done.stdout
    assert known >= 35


def test_the_last_line_is_one_object() -> None:
    done = tightwire("methods", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["methods"]


def test_help_lists_every_command() -> None:
    done = tightwire("--help")
    assert done.code == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_help_waits_for_no_import_of_torch() -> None:
    code = "import sys; from tightwire.cli import application; application().main(['--help'], standalone_mode=False)"
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_their_help_says(name: str) -> None:
    group = application()
    assert first_sentence(group.get_command(None, name)) == f"{COMMANDS[name]}."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("simulate", "bsp/allreduce:ring/topk:0.01", *MODEL),
            "Nearest legal",
        ),
        (("tour", "--rate", "0mbit"), "0mbit"),
        (("tour", "--workers", "0"), "0 workers"),
        (("nothing",), "No such command"),
    ],
)
def test_bad_input_ends_with_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    done = tightwire(*arguments)
    assert done.code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_stands_behind_another_is_found() -> None:
    assert "Did you mean allreduce:ring or gossip:ring?" in refused("methods", "ring")
