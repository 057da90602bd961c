"""`tightwire plan` and `tightwire simulate`, called as typer calls them."""

import json
import pathlib

import pytest
from typer.testing import CliRunner

from tightwire.cli import plan, simulate
from tightwire.errors import FileError, PlanError, TightwireError
from tightwire.plan import PlanFile

NUMBERS = ["--gradients", "20MB", "--compute", "380ms", "--workers", "4", "--bandwidth", "200mbit"]


def test_plan_prints_a_table_and_reasons_and_writes_the_file(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "plan.yaml"
    ended = CliRunner().invoke(plan.app, [*NUMBERS, "--allow", "lossy", "--out", str(out)])
    assert ended.exit_code == 0
    assert "times as fast" in ended.output
    assert PlanFile.read(out).why


def test_simulate_sorts_its_rows() -> None:
    ended = CliRunner().invoke(simulate.app, ["bsp", "bsp/allreduce/topk:0.01+ef", *NUMBERS, "--json"])
    rows = json.loads(ended.output)["ranking"]
    assert [row["plan"] for row in rows] == ["bsp/allreduce/topk:0.01+ef", "bsp"]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["bsp"], FileError, "--profile"),
        (["bsp", *NUMBERS[:4]], FileError, "--cluster"),
        (["bsp", "--gradients", "20", "--compute", "1", *NUMBERS[4:]], FileError, "--compute"),
        (["bsp", "--gradients", "20XB", "--compute", "1s", *NUMBERS[4:]], FileError, "--gradients"),
        (["bsp", *NUMBERS, "--latency", "5 minutes"], FileError, "--latency"),
        (["bsp", *NUMBERS[:6], "--bandwidth", "0"], TightwireError, "rate"),
        (["bps", *NUMBERS], PlanError, "bsp"),
        (["bsp", *NUMBERS[:4], "--cluster", "nowhere.yaml"], FileError, "nowhere.yaml"),
    ],
)
def test_bad_input_names_what_is_wrong(arguments: list[str], error: type[Exception], says: str) -> None:
    ended = CliRunner().invoke(simulate.app, arguments)
    assert isinstance(ended.exception, error)
    assert says in str(ended.exception)
