"""Tables and help at the widths of real terminals: nothing is cut, nothing runs over."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Iterator

import pytest

from tests.command_line import tightwire
from tightwire.bench.collectives import CollectiveRow
from tightwire.cli import COMMANDS, application, measured, methods
from tightwire.cli.table import entries, lay_out, print_rows, say_json
from tightwire.cluster import Cluster
from tightwire.planner import recommend
from tightwire.profile import Profile
from tightwire.tour import report as tour_report

WIDTHS = (60, 80, 120)
LONG = "diloco:64,outer_lr=0.7,outer_momentum=0.9/allreduce:hierarchical/int4+ef/streaming:4,overlap=4"
NUMBERS = [
    (LONG, "1,234", "1,520 ms", "1,498 ms (-1%)", "1,210 ms", "29.4 MB", "2.345", "12.5 s"),
    ("stock DDP", "31", "1.52 s", "1.5 s (+0%)", "0.9 ms", "29 MB", "3.1", "–"),
]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_fits_and_no_number_is_cut(width: int) -> None:
    lines = list(lay_out(tour_report.COLUMNS, NUMBERS, width=width))
    assert max(map(len, lines)) <= width
    text = "".join(line.strip() for line in lines)
    for cell in itertools.chain(*NUMBERS):
        assert cell in text


def test_a_pipe_gets_a_line_per_row() -> None:
    lines = list(lay_out(tour_report.COLUMNS, NUMBERS))
    assert len(lines) == 2 + len(NUMBERS)
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_lists_are_wrapped_beside_their_names(width: int) -> None:
    lines = list(entries([("a-very-long-name-of-a-method", ["word " * 40]), ("bsp", ["x"])], width))
    assert max(map(len, lines)) <= width
    assert lines[-1] == f"  {'bsp':<20}x"


@pytest.mark.parametrize("width", WIDTHS)
def test_what_commands_print_fits(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    model = Profile.uniform(layers=4, numel_per_layer=10**6, forward_s=0.1, backward_s=0.2)
    ranking = recommend(model, Cluster.uniform(4, 1e8, 5e-5), allow="stale")
    measured.print_table(
        ranking.shortlist, {"sooner?": [f"{ranking.chance(row):.0%}" for row in ranking.shortlist]}
    )
    methods.methods(names=None, matrix=False, as_json=False)
    methods.methods(names=["diloco", "topk"], matrix=False, as_json=False)
    row = CollectiveRow(
        program="hierarchical,inside=double-tree/int8", bytes=1 << 24, seconds=1.0, low_s=0.9, high_s=1.1,
        wire_bound_s=0.5, own_bound_s=0.5, ratio=2.0, own_ratio=1.5,
    )  # fmt: skip
    from tightwire.cli.benches.collectives import HEAD, cells

    print_rows(HEAD, [cells(row)])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > width] == []


def commands() -> Iterator[tuple[str, ...]]:
    """Yields every command and group, as one calls it."""
    yield ()
    root = application()
    for name in COMMANDS:
        yield (name,)
        command = root.get_command(None, name)
        for under in getattr(command, "commands", ()):
            yield name, under


GROUPS = {(), ("lab",), ("cluster",), ("bench",), ("study",)}


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_help_has_examples_line_by_line_and_fits(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stdout = tightwire(*command, "--help").stdout
    lines = stdout.splitlines()
    assert [line for line in lines if len(line) > 84] == []
    called = command[:1] if len(command) > 1 and command[0] == "study" else command  # races, and the map
    example = " ".join(("      tightwire", *(called if command != ("study", "map") else ())))
    assert [line for line in lines if line.startswith((example, "      torchrun"))], stdout
    assert ("--install-completion" in stdout) == (command == ())
    assert ("--json" in stdout.partition("Options:")[2]) == (command not in GROUPS)


def test_json_holds_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"loss": math.nan, "rows": [{"time": math.inf}, (1.5, "NaN", None, True)]})
    assert capsys.readouterr().out == '{"loss": null, "rows": [{"time": null}, [1.5, "NaN", null, true]]}\n'


def test_no_command_prints_json_in_a_way_of_its_own() -> None:
    commands = pathlib.Path(measured.__file__).parent.glob("*.py")
    assert [p.name for p in commands if "echo(json.dumps" in p.read_text()] == ["table.py"]
