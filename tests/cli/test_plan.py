"""`tightwire plan` and `tightwire simulate`, called as typer calls them."""

import json
import pathlib
import sys

import pytest
from typer.testing import CliRunner

from tightwire.cli import main, plan, simulate
from tightwire.errors import FileError, PlanError, UnitError
from tightwire.plan import PlanFile

NUMBERS = ["--gradients", "20MB", "--compute", "380ms", "--workers", "4", "--bandwidth", "200mbit"]


def test_plan_prints_a_table_and_reasons_and_writes_the_file(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "plan.yaml"
    ended = CliRunner().invoke(plan.app, [*NUMBERS, "--allow", "lossy", "--out", str(out)])
    assert ended.exit_code == 0
    assert "times as fast" in ended.output
    assert "steps/s └" in ended.output
    assert PlanFile.read(out).why


def test_simulate_sorts_its_rows() -> None:
    ended = CliRunner().invoke(simulate.app, ["bsp", "bsp/allreduce/topk:0.01+ef", *NUMBERS, "--json"])
    rows = json.loads(ended.output)["ranking"]
    assert [row["plan"] for row in rows] == ["bsp/allreduce/topk:0.01+ef", "bsp"]


def test_simulate_traces_what_a_step_waits_for(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "trace.json"
    CliRunner().invoke(
        simulate.app, ["bsp", "local:8", *NUMBERS, "--trace", str(trace)], catch_exceptions=False
    )
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {"bsp", "local:8"}
    assert {"forward", "exchange"} <= {event["name"] for event in events}
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["bsp"], FileError, "--profile"),
        (["bsp", *NUMBERS[:4]], FileError, "--cluster"),
        (["bsp", "--gradients", "20", "--compute", "1", *NUMBERS[4:]], UnitError, "--compute"),
        (["bsp", "--gradients", "20XB", "--compute", "1s", *NUMBERS[4:]], UnitError, "--gradients"),
        (["bsp", *NUMBERS, "--latency", "5 minutes"], UnitError, "--latency"),
        (["bsp", *NUMBERS[:6], "--bandwidth", "0"], FileError, "bandwidth"),
        (["bps", *NUMBERS], PlanError, "bsp"),
        (["bsp", *NUMBERS[:4], "--cluster", "nowhere.yaml"], FileError, "nowhere.yaml"),
    ],
)
def test_bad_input_names_what_is_wrong(arguments: list[str], error: type[Exception], says: str) -> None:
    ended = CliRunner().invoke(simulate.app, arguments)
    assert isinstance(ended.exception, error)
    assert says in str(ended.exception)


def test_the_json_tells_how_sure_the_choice_is(tmp_path: pathlib.Path) -> None:
    drawing = tmp_path / "plot.html"
    ended = CliRunner().invoke(plan.app, [*NUMBERS, "--json", "--plot", str(drawing)])
    found = json.loads(ended.output.splitlines()[-1])
    assert found["ranking"][0]["beats_chosen"] is None
    assert all(0 <= row["beats_chosen"] <= 1 for row in found["ranking"][1:])
    assert found["considered"] >= len(found["ranking"])
    assert "steps per second" in drawing.read_text(encoding="utf-8")


BAD_CLUSTERS = {
    "workers: 8\nbandwidth_bytes_per_s: 400.0e+12\nlatency_s: 1.0e-5\n": "an eighth of bits per second",
    "workers: 8\nbandwidth_bytes_per_s: 0.0\nlatency_s: 1.0e-5\n": "write more than 0",
    "workers: 8\nbandwidth_bytes_per_s: -1.0e+9\nlatency_s: 1.0e-5\n": "write more than 0",
    "workers: 8\nbandwidth_bytes_per_s: 1.0e+9\nlatency_s: 1.0e-5\ndevices: 4\n": "8 workers on 4 devices",
    "workers: 8\nbandwidth_bytes_per_s: 1.0e+9\nlatency_s: 1.0e-5\ndevice_memory_bytes: 1000000\n": "does not fit",
    "workers: 8\nbandwidth: 1.0e+9\nlatency_s: 1.0e-5\n": "bandwidth",
    "workers: 8\nbandwidth_bytes_per_s: 1.0e+9\nlatency_s: 50.0\n": "look at the unit",
}


@pytest.mark.parametrize(("text", "says"), BAD_CLUSTERS.items(), ids=BAD_CLUSTERS.values())
def test_clusters_that_cannot_be_end_with_one_sentence_and_code_2(
    text: str,
    says: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    arguments = ["tightwire", "plan", *NUMBERS[:4], "--cluster", str(tmp_path / "cluster.yaml")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert says in said.err
    assert said.err.startswith("tightwire: ")
    assert "Traceback" not in said.err
    assert not said.out


def test_a_line_like_an_nvlink_is_asked_back_and_taken(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("workers: 8\nbandwidth_bytes_per_s: 400.0e+9\nlatency_s: 1.0e-5\nnotes: [one guess]\n")
    ended = CliRunner().invoke(simulate.app, ["bsp", *NUMBERS[:4], "--cluster", str(path)])
    assert ended.exit_code == 0
    assert "cluster: one guess" in ended.stderr
    assert "if bits were meant, write 5e+10" in ended.stderr
