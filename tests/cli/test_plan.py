"""`tightwire plan` and `tightwire simulate`, called as typer calls them."""

import dataclasses
import functools
import json
import pathlib
import sys

import pytest
from typer.testing import CliRunner

from tightwire.cli import main, plan, simulate
from tightwire.cli.measured import Asked, print_ranking
from tightwire.cluster import Cluster
from tightwire.errors import FileError, PlanError, UnitError
from tightwire.plan import PlanFile
from tightwire.planner.curves import figure
from tightwire.planner.ranking import Ranking, rank
from tightwire.profile import Profile
from tightwire.units import print_ms, print_size

NUMBERS = ["--gradients", "20MB", "--compute", "380ms", "--workers", "4", "--bandwidth", "200mbit"]


def test_plan_prints_the_verdict_first_and_writes_the_file_and_the_picture(tmp_path: pathlib.Path) -> None:
    out, drawing = tmp_path / "plan.yaml", tmp_path / "plot.html"
    arguments = [*NUMBERS, "--out", str(out), "--plot", str(drawing), "--json"]
    ended = CliRunner().invoke(plan.app, arguments, catch_exceptions=False)
    found = json.loads(ended.output.splitlines()[-1])
    assert found["why"][0].startswith("Train with ")
    assert len(found["why"]) <= 9
    assert found["ranking"][0]["beats_chosen"] is None
    assert all(0 <= row["beats_chosen"] <= 1 for row in found["ranking"][1:])
    assert found["considered"] >= len(found["ranking"])
    assert PlanFile.read(out).why == (*found["why"], *found["details"])
    assert "Steps per second against bandwidth" in drawing.read_text(encoding="utf-8")


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
        (["bsp", *NUMBERS[:4], "--workers", "0", *NUMBERS[6:]], FileError, "--workers: 0 is outside 1"),
        (["bps", *NUMBERS], PlanError, "bsp"),
        (["bsp", *NUMBERS[:4], "--cluster", "nowhere.yaml"], FileError, "nowhere.yaml"),
        (
            ["bsp", *NUMBERS[:4], "--cluster", "c.yaml", "--workers", "8"],
            FileError,
            "--workers: --cluster FILE says it",
        ),
        (
            ["bsp", *NUMBERS[:4], "--cluster", "c.yaml", "--latency", "1ms"],
            FileError,
            "--latency: --cluster FILE says",
        ),
        (["bsp", *NUMBERS[:4], "--cluster", "c.yaml", "--hardware", "aws-p4d:2"], FileError, "given twice"),
        (["bsp", *NUMBERS[:4], "--hardware", "aws-p4d:two"], FileError, "NAME:NODES"),
        (["bsp", *NUMBERS[:4], "--hardware", "aws-p4:2"], FileError, "'aws-p4' is not known"),
        (["bsp", *NUMBERS, "--kinds", "a:4+b"], FileError, "NAME:WORKERS"),
        (["bsp", *NUMBERS[:6], "--bandwidth", "1e30gbit"], FileError, "nothing here has more"),
        (["bsp", *NUMBERS, "--kinds", "a:4,fast=2"], FileError, "speed, line, price, share"),
        (["bsp", *NUMBERS, "--kinds", "a:2+b:2,speed=quick"], FileError, "speed=0.45"),
        (["bsp", *NUMBERS, "--kinds", "a:2+b:1"], FileError, "make them equal"),
        (["bsp", "--gradients", "0MB", *NUMBERS[2:]], FileError, "nothing to exchange"),
        (["bsp", "--gradients", "100", *NUMBERS[2:]], FileError, "write 100MB"),
        (["bsp", *NUMBERS[:2], "--compute", "0ms", *NUMBERS[4:]], FileError, "a microsecond at least"),
        (["bsp", "--model", "resnet50", *NUMBERS[4:]], FileError, "--device"),
        (["bsp", "--model", "resnet50", "--device", "v100", *NUMBERS[4:]], FileError, "write --batch"),
        (
            ["bsp", "--model", "resnet50", "--device", "v100", "--batch", "8", "--length", "9", *NUMBERS[4:]],
            FileError,
            "images",
        ),
        (["local:99999999999999999999999", *NUMBERS], PlanError, "local:"),
        # The device's memory, where the cluster does not tell.
        (
            ["bsp", "--model", "llama-70b", "--device", "a100", "--batch", "1", *NUMBERS[4:]],
            PlanError,
            "does not fit",
        ),
    ],
)
def test_bad_input_names_what_is_wrong(arguments: list[str], error: type[Exception], says: str) -> None:
    ended = CliRunner().invoke(simulate.app, arguments)
    assert isinstance(ended.exception, error)
    assert says in str(ended.exception)


def test_a_choice_says_how_a_script_trains_with_it_unless_pytorch_does() -> None:
    slow, fast = (
        CliRunner().invoke(plan.app, [*NUMBERS[:6], "--bandwidth", rate, "--allow", "lossy"]).output
        for rate in ("100mbit", "400gbit")
    )
    assert "--out plan.yaml" in slow
    assert "tw.attach" in slow
    assert "tw.attach" not in fast


def test_round_numbers_are_those_of_a_gpu_unless_told() -> None:
    gpu, cpu = (
        json.loads(CliRunner().invoke(simulate.app, ["bsp", *NUMBERS, *more, "--json"]).output)["ranking"][0]
        for more in ([], ["--device", "cpu"])
    )
    assert 0.38 < gpu["compute_s"] < 0.38 * 1.19  # NCCL's kernels slow it down for a part of the time
    assert cpu["compute_s"] == pytest.approx(0.39, rel=0.01)  # gradients go into buckets by its memory's rate


def test_pictures_have_titles_and_axes_that_hold_the_curves() -> None:
    ranking = rank(Profile.uniform(layers=4, numel_per_layer=10**6, forward_s=0.1, backward_s=0.2),
                   Cluster.uniform(4, 119e6, 5e-5), "lossless")  # fmt: skip
    drawn = figure(ranking).to_dict()
    layout = drawn["layout"]
    assert "4 workers, 16.00 MB" in layout["title"]["text"]
    assert layout["xaxis"]["title"]["text"] == "bandwidth of each worker's line, Gb/s of payload"
    assert layout["yaxis"]["title"]["text"] == "steps per second"
    assert layout["xaxis"]["type"] == layout["yaxis"]["type"] == "log"
    here, *others = layout["annotations"]
    assert not others
    assert 10 ** here["x"] == pytest.approx(119e6 * 8 / 1e9)  # on a logarithmic axis, its logarithm
    assert all(min(curve["x"]) < 10 ** here["x"] < max(curve["x"]) for curve in drawn["data"])


@functools.cache
def lossy_ranking() -> Ranking:
    profile = Profile.uniform(layers=4, numel_per_layer=10**6, forward_s=0.1, backward_s=0.2)
    ranking = rank(profile, Cluster.uniform(4, 24e6, 5e-5), "lossy")
    return dataclasses.replace(
        ranking, why=("A verdict of several words, long enough for two lines of text.",)
    )


@pytest.mark.parametrize("width", [None, 60, 80, 120])
def test_no_number_is_cut_at_any_width(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width or ""))
    ranking = lossy_ranking()
    plan.print_all(ranking, explain=True)
    print_ranking(ranking.rows[:3], ["A sentence."], as_json=False)
    output = capsys.readouterr().out
    assert "…" not in output
    for row in (*ranking.shortlist[:3], *ranking.rows[:3]):
        assert print_ms(row.step_s) in output
        assert print_size(row.bytes_per_step) in output
    if width:
        assert max(map(len, output.splitlines())) <= width
    else:  # a line per row, for grep and sort
        assert sum(print_ms(row.step_s) in line and str(row.plan) in line
                   for line in output.splitlines() for row in ranking.rows[:3]) >= 3  # fmt: skip


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


def test_kinds_are_told_by_a_command_and_known_devices_are_as_fast_as_their_data_sheets() -> None:
    asked = Asked(
        model="bert-base", device="a100", batch=32, bandwidth="25gbit",
        kinds="a100:4+v100:3,line=10gbit,price=2.5+old:1,speed=0.2",
    )  # fmt: skip
    cluster = asked.read_cluster()
    new, slower, old = cluster.kinds
    assert (cluster.workers, new.speed, old.speed, slower.price_per_hour) == (8, 1.0, 0.2, 2.5)
    assert 0.2 < slower.speed < 0.8
    assert slower.bandwidth_bytes_per_s == pytest.approx(10 / 25 * cluster.bandwidth_bytes_per_s)


@pytest.mark.parametrize("more", [["--out", "plan.yaml"], ["--explain"], ["--samples-per-epoch", "1000"]])
def test_what_a_sweep_would_not_heed_is_refused(
    more: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(plan.app, [*NUMBERS, "--sweep", "workers=2..4", *more])
    assert isinstance(ended.exception, FileError)
    assert str(ended.exception).startswith(f"{more[0]} is of one choice")
