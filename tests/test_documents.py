"""What documents say is true: their code runs, their plans and commands exist, the examples work, the pages build."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.run import get_args_parser

import tightwire
from tests.command_line import tightwire as command_line
from tests.workers import run_processes
from tightwire import catalogue as members
from tightwire.architecture.gossip.graphs import GRAPHS
from tightwire.catalogue import catalogue, parse_compression
from tightwire.cli import COMMANDS, application
from tightwire.cli.benches import BENCHES
from tightwire.cluster import Cluster
from tightwire.plan import Phases, PlanFile
from tightwire.study.studies import STUDIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = DOCS | {"README.md": README}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NAMES = {
    "Net": lambda: nn.Linear(3, 2),
    "loader": [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(3)],
    "loss_fn": nn.functional.mse_loss,
}


def blocks() -> Iterator[tuple[str, str]]:
    """Yields the Python of every page, with the page's name."""
    for name, text in PAGES.items():
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            yield name, code


BLOCKS = list(blocks())


def test_there_is_code_to_run() -> None:
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_code_on_pages_runs_alone(
    page: str, code: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_registered", [])
    kept = [(names, dict(names)) for names in (STUDIES, GRAPHS)]
    try:
        exec(code, {**NAMES, "__name__": "__main__"})
    finally:
        tightwire.shutdown()
        for names, before in kept:
            names.clear()
            names.update(before)
        members.catalogue.cache_clear()
        members.parse_member.cache_clear()
    if "run.report()" in code:
        assert "steps         3" in capsys.readouterr().out


def plans(text: str) -> Iterator[str]:
    """Yields what looks like a plan of several answers: in backticks, or on an indented line of its own."""
    syncs = "|".join(map(re.escape, catalogue("sync")))
    yield from re.findall(rf"`((?:{syncs})(?:[:@][^`/ ]*)?/[^` ]*)`", text)
    yield from re.findall(rf"^    ((?:{syncs})(?:[:@]\S*)?/\S+)$", text, re.MULTILINE)


def test_plans_on_pages_are_legal() -> None:
    found = {plan for text in PAGES.values() for plan in plans(text) if "…" not in plan}
    assert len(found) >= 15
    for plan in found:
        Phases.parse(plan)


def test_the_readme_names_known_compressions() -> None:
    (row,) = [line for line in README.splitlines() if line.startswith("| what is sent?")]
    for text in re.findall(r"`([^`+][^`]*)`", row):
        parse_compression(text)


def test_the_readme_names_every_command() -> None:
    assert set(re.findall(r"`tightwire (\w+)", README)) == set(COMMANDS)
    rows = " ".join(line for line in README.splitlines() if line.startswith("| `tightwire bench "))
    assert set(re.findall(r"`(?:tightwire bench )?(\w+)`", rows)) == {bench.__name__ for bench in BENCHES}


def commands() -> Iterator[str]:
    """Yields the command lines of all pages and help texts that begin with `tightwire`."""
    for text in PAGES.values():
        joined = text.replace("\\\n", " ")
        yield from re.findall(r"^    (tightwire .*)$", joined, re.MULTILINE)
        yield from re.findall(r"`(tightwire [a-z][^`]*)`", joined)


def test_commands_on_pages_have_the_options_that_they_use() -> None:
    checked = 0
    for line in sorted(set(commands())):
        words = shlex.split(line.partition(" -- ")[0])[1:]
        command = application()
        while words[:1] == ["--import"]:  # which stands before the command
            words = words[2:]
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            found = command.get_command(None, words[0])
            assert found is not None, line
            command, words = found, words[1:]
        known = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in words:
            if word.startswith("--") and word not in ("--help",):
                assert word in known, f"{line}: {word}"
                checked += 1
    assert checked > 20


def lines_of(launcher: str) -> Iterator[list[str]]:
    """Yields the words of command lines that stand by themselves, up to a remark."""
    for text in PAGES.values():
        joined = text.replace("\\\n", " ")
        for line in re.findall(rf"^(?:    |\w+=\S+ )({launcher} .*)$", joined, re.MULTILINE):
            yield shlex.split(line, comments=True)


def test_command_lines_on_pages_are_accepted() -> None:
    """All of them: arguments, values and what is required."""
    checked = 0
    for words in lines_of("tightwire"):
        command, rest = application(), words[1:]
        while rest[:1] == ["--import"]:
            rest = rest[2:]
        while hasattr(command, "commands"):
            command, rest = command.get_command(None, rest[0]), rest[1:]
        command.make_context(words[1], rest)  # raises what a user would see
        checked += 1
    assert checked > 20


def test_torchrun_takes_the_lines_that_begin_with_it() -> None:
    inline = [
        shlex.split(line) for text in PAGES.values() for line in re.findall(r"`(torchrun [^`]*\.py)`", text)
    ]
    lines = [*lines_of("torchrun"), *inline]
    assert len(lines) >= 4
    for words in lines:
        assert get_args_parser().parse_args(words[1:]).training_script in ("train.py", "tightwire")


def test_files_on_pages_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "told.yaml"
    found = [text for page in PAGES.values() for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert len(found) >= 4
    for text in found:
        path.write_text(text, encoding="utf-8")
        (PlanFile if text.startswith("plan:") else Cluster).read(path)


def anchors(page: Path) -> set[str]:
    """Returns what headings of a page of Markdown are linked by."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere_in_a_checkout() -> None:
    """Those of the pages that are built are held by the strict build."""
    outside = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "results/README.md")
    for name in (*outside, *(f"docs/{page}" for page in DOCS)):
        for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), f"{name}: {link}"
            assert not anchor or anchor in anchors(target), f"{name}: {link}"


def test_every_term_of_the_glossary_is_defined_once_and_exists() -> None:
    text = DOCS["glossary.md"]
    terms = re.findall(r"^\*\*(.+)\*\*\n:   \S", text, re.MULTILINE)
    assert len(terms) >= 35
    assert terms == sorted(set(terms))
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tightwire").rglob("*.py"))
    for term in terms:
        assert re.search(rf"\b{term.replace(' ', '[_ ]')}", source, re.IGNORECASE), f"{term} is used nowhere"
    for name in re.findall(r"`([A-Z]\w+)`", text):
        assert re.search(rf"^class {name}\b", source, re.MULTILINE), f"{name} is no class"


def test_pages_made_from_the_code_hold_every_member() -> None:
    spec = importlib.util.spec_from_file_location("_pages", ROOT / "docs" / "_pages.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    for axis in ("sync", "architecture", "compression", "schedule"):
        page = made.family_page(axis)
        for name, member in catalogue(axis).items():
            assert f"\n## {name} " in page
            assert member.title in page
    assert all(f".{name}\n" in made.api_page() for name in tightwire.__all__)


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "methods" / "compression.html").exists()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    code = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) < 40
    assert ast.get_docstring(ast.parse(text))


ALONE = {
    "train": (["--steps", "2"], "workers       1"),
    "plan_without_cluster": ([], "64 workers: bsp"),
    "own_codec": ([], "bsp/allreduce/e5m2+ef"),
    "own_study": ([], "local:8/allreduce/int8+ef"),
}
# Name: what it needs besides torch, how many workers, what it is given, what it prints.
TOGETHER = {
    "gpu": ("torch", 2, [], "workers       2"),
    "ddp_hook": ("torch", 2, [], "a checkpoint holds model, hook"),
    "with_fsdp": ("torch", 4, [], ""),
    "two_sites": ("torch", 4, [], "2 sites agreed 4 times"),
    "with_accelerate": ("accelerate", 2, [], "exposed wait"),
    "with_lightning": ("lightning", 1, [], ""),
    "with_trainer": ("transformers", 2, [], ""),
}

# Run elsewhere: below, by tests/processes/test_ray.py and tests/integrations/test_launchers.py.
ELSEWHERE = ("checkpoint", "elastic", "with_ray", "with_torchtitan")


# As a launcher would start it: a worker that torchrun's store serves, or, alone, one that no launcher started.
RUN = """
import runpy
if size == 1:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
else:
    store = rendezvous()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
sys.argv = ARGUMENTS
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(
    name: str, workers: int, arguments: list[str], tmp_path: Path, preload: tuple[str, ...] = ()
) -> str:
    given = [
        str(ROOT / "examples" / f"{name}.py"),
        *(argument.format(tmp=tmp_path) for argument in arguments),
    ]
    script = RUN.replace("ARGUMENTS", repr(given))
    ended = run_processes(workers, script, join=False, timeout_s=150, preload=preload)
    return "".join(end.out for end in ended)


@pytest.mark.parametrize("name", ALONE)
def test_an_example_runs_alone(name: str, tmp_path: Path) -> None:
    arguments, said = ALONE[name]
    assert said in run_example(name, 1, arguments, tmp_path)


@pytest.mark.parametrize("name", TOGETHER)
def test_an_example_runs_together(name: str, tmp_path: Path) -> None:
    module, workers, arguments, said = TOGETHER[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    assert said in run_example(name, workers, arguments, tmp_path, preload=(module,))


def test_a_checkpoint_is_resumed_by_another_number_of_workers(tmp_path: Path) -> None:
    for workers, steps in ((2, 10), (3, 20)):
        said = run_example("checkpoint", workers, ["{tmp}/run.pt"], tmp_path, preload=("torch",))
        assert f"{workers} workers saved after step {steps}" in said


def test_a_checkpoint_that_some_ranks_lack_is_refused_by_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "run-0.pt").touch()
    arguments = f"[{str(ROOT / 'examples' / 'checkpoint.py')!r}, f'{tmp_path}/run-{{rank}}.pt']"
    script = RUN.replace("ARGUMENTS", arguments)
    for end in run_processes(2, script, join=False, timeout_s=150, check=False, preload=("torch",)):
        assert end.code == 1
        assert "is there for some ranks only: copy it to every machine" in end.err


def test_an_example_goes_on_without_a_worker() -> None:
    """By the command that the pages name, for it needs a lighthouse."""
    pytest.importorskip("torchdata")
    lab = [
        "-m",
        "tightwire",
        "lab",
        "run",
        "--mode",
        "shaped",
        "--rate",
        "none",
        "--elastic",
        "--workers",
        "2",
        "--",
    ]
    done = subprocess.run(
        [sys.executable, *lab, sys.executable, "-W", "ignore", "examples/elastic.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "step 60, 2 workers" in done.stdout


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES} == {*ALONE, *TOGETHER, *ELSEWHERE}
    table = DOCS["index.md"].partition("## Examples")[2]
    assert set(re.findall(r"`(\w+\.\w+)`", table)) == {path.name for path in (ROOT / "examples").glob("*.*")}


def test_the_version_is_one() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {version[1]}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_methods_are_told_as_one_object() -> None:
    said = command_line("methods", "--json").stdout.splitlines()[-1]
    assert {"name", "axis", "title", "paper", "combines_with"} <= set(json.loads(said)["methods"][0])
