"""The tour's results: what it prints, writes and refuses. The tour itself is `make tour`."""

from __future__ import annotations

import dataclasses
import json
import math
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch

from tests.pictures import check_picture, drawn
from tightwire.cli.tour import _line
from tightwire.errors import LabError, PlanError
from tightwire.lab import Lab
from tightwire.runtime.trace import Tracer
from tightwire.tour import curves
from tightwire.tour import report as tour_report
from tightwire.tour import tour as tours
from tightwire.tour.tour import PlanResult, TourOptions, TourResult
from tightwire.tour.walk import walk
from tightwire.workloads.text import draw, standard_library
from tightwire.workloads.transformer import ByteTransformer

# What DESIGN fixes of `tightwire tour --json`.
FIELDS = {
    "plan",
    "role",
    "steps",
    "seconds",
    "step_s",
    "predicted_step_s",
    "bytes_per_step",
    "exposed_s",
    "heldout_loss",
}


def row(plan: str, role: str, steps: int, trace: Path | None = None) -> PlanResult:
    return PlanResult(
        plan=plan,
        role=role,
        steps=steps,
        seconds=10.0,
        step_s=10.0 / steps,
        predicted_step_s=11.0 / steps,
        bytes_per_step=1_000_000,
        exposed_s=0.1,
        heldout_loss=3.0 - steps / 100,
        curve=((0.0, 0, 5.8), (10.0, steps, 3.0 - steps / 100)),
        trace=trace,
    )


@pytest.fixture
def result(tmp_path: Path) -> TourResult:
    tracer = Tracer()
    for start_s in (0.0, 1.0, 2.0):
        tracer.record("compute", "forward", start_s, start_s + 0.2)
        tracer.record("communication", "bucket 0", start_s + 0.3, start_s + 0.8)
        tracer.record("compute", "optimizer", start_s + 0.8, start_s + 0.9)
    tracer.write(tmp_path / "trace-1.json", rank=0)
    return TourResult(
        options=TourOptions(out=tmp_path),
        lab="4 workers.",
        facts={"compute_s": 0.3, "num_bytes": 4e6, "bandwidth_bytes_per_s": 2e7, "latency_s": 1e-4},
        why={"lossless": ["Because <it> is faster."]},
        plans=[row("ddp", "ddp", 10), row("local:8", "lossy", 40, tmp_path / "trace-1.json")],
    )


def test_json_has_what_others_read(result: TourResult) -> None:
    printed = json.loads(json.dumps(result.to_json()))
    assert printed["workers"] == 4
    assert printed["rate_bytes_per_s"] == 25e6
    assert all(set(plan) >= FIELDS for plan in printed["plans"])


def test_its_pictures_can_be_read(
    result: TourResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn(monkeypatch, lambda: tour_report.write(result, tmp_path / "report.html"))
    assert len(figures) == 2
    for figure in figures:
        check_picture(figure, is_titled=False)  # the page has a heading above each


def test_its_timeline_has_room_for_bars_and_its_plans_break_at_their_joints(
    result: TourResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a telephone: what stands left of the bars is short, and plans have lines of their own above them."""
    long = "bsp/allreduce/entropy/bytescheduler:4MiB,credit_bytes=16MiB,fuse_bytes=1MiB"
    result.plans.append(row(long, "lossless", 20, result.plans[1].trace))
    _, timeline = drawn(monkeypatch, lambda: tour_report.write(result, tmp_path / "report.html"))
    layout = timeline["layout"]
    assert set(layout["yaxis"]["ticktext"]) == {"computing", "sending"}
    named = [note["text"].replace("<br>", "") for note in layout["annotations"]]
    assert named == [long, "local:8", "stock DDP"]
    ends = [note["y"] for note in layout["annotations"]]
    rows = {bar["y"][0] for bar in timeline["data"]}
    assert rows.isdisjoint(ends)
    assert rows | set(ends) == set(range(ends[-1] + 1))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    table = page[page.index("<table>") : page.index("</table>")]
    assert (
        "<td>bsp/<wbr>allreduce/<wbr>entropy/<wbr>bytescheduler:4MiB,<wbr>credit_bytes=16MiB,<wbr>fuse"
        in table
    )
    assert "overflow-wrap: anywhere" not in page


def test_the_curves_are_a_picture_with_titles_and_what_was_reached_when(result: TourResult) -> None:
    picture = curves.picture(result, "tightwire tour")
    texts = list(xml.etree.ElementTree.fromstring(picture).itertext())
    assert "Held-out loss over time: 4 workers, links of 200 Mb/s" in texts
    assert {"seconds of training", "nats per byte", "tightwire tour"} <= set(texts)
    assert "stock DDP" in texts
    assert "local:8: there in 9 s" in texts  # from 5.8 to 2.6 in 10 s: 2.9 is reached after 9.06 s


def test_the_report_stands_alone_and_says_what_happened(result: TourResult, tmp_path: Path) -> None:
    tour_report.write(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "local:8 made 4.0× the steps of stock DDP" in page
    assert "What stock DDP had learnt after 10 s: local:8 after 9.1 s." in page
    assert "Because &lt;it&gt; is faster." in page
    assert 'src="http' not in page
    assert "One step, seen from rank 0" in page
    assert "each of 4 workers sends 6.00 MB a step, which takes 300 ms, 1.0 times the compute" in page
    assert "Asked for: local:8, predicted 275 ms, measured 250 ms a step." in page
    result.plans = [dataclasses.replace(row("bsp", "lossless", 40), asked="lossless")]
    *_, answer = walk(result)
    assert (
        answer
        == "The planner's answer, lossless plans allowed: bsp, predicted 275 ms, measured 250 ms a step."
    )


def test_what_a_race_may_cost_is_told_before_it() -> None:
    event = {"event": "stage", "name": "train", "detail": "race", "seconds": 45.0, "lost_s": 2.25}
    assert "at most 2.2 s of its 45 s" in _line(event)
    assert _line({"event": "stage", "name": "train", "detail": "ddp", "seconds": 45.0}) == ""


def test_the_verdict_can_be_to_stay(result: TourResult) -> None:
    result.plans = [row("ddp", "ddp", 10), row("bsp", "lossless", 10)]
    assert tour_report.verdict(result).startswith("Stay with stock DDP")
    result.plans = result.plans[1:]
    assert "stock DDP (ddp) was not asked for" in tour_report.verdict(result)
    result.compared = False
    assert "nothing here can slow it down" in tour_report.verdict(result)
    result.plans, result.compared = [row("ddp", "ddp", 10)], True
    assert "a plan to compare stock DDP with was not asked for" in tour_report.verdict(result)


@pytest.mark.parametrize("end", [5.8, 6.1])
def test_a_loss_that_training_begins_with_is_reached_at_once(end: float) -> None:
    """As where stock DDP made no headway on a slow network."""
    plan = dataclasses.replace(
        row("local:8", "lossy", 40), curve=((0.0, 0, 5.8), (4.0, 8, 5.8), (10.0, 40, 2.6))
    )
    assert plan.first_at(end) == 0.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seconds": 0.0}, "at least 1"),
        ({"seconds": math.nan}, "at least 1"),
        ({"workers": 1}, "nobody to agree with"),
    ],
)
def test_tours_that_show_nothing_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(LabError, match=said):
        TourOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="no known sync"):
        TourOptions(plans=("ddp", "nonsense"))
    with pytest.raises(LabError, match="without a plan"):
        TourOptions(plans=())


def test_stock_ddp_alone_is_refused_where_nothing_slows_it_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tours, "Lab", lambda topology: Lab(topology, mode="shaped"))
    with pytest.raises(LabError, match="stock DDP alone"):
        tours.run(TourOptions(workers=2, plans=("ddp",), out=tmp_path))


def test_the_text_is_real_and_held_out_files_are_apart() -> None:
    corpus = standard_library(train_bytes=2**16, heldout_bytes=2**15)
    assert b"import " in corpus.train.numpy().tobytes()
    assert len(corpus.heldout) == 2**15
    assert corpus.heldout.numpy().tobytes()[:4096] not in standard_library().train.numpy().tobytes()


def test_the_transformer_learns() -> None:
    torch.manual_seed(0)
    model = ByteTransformer(width=32, layers=1, heads=2, length=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    passages = draw(
        standard_library(2**14).train, sequences=8, length=16, generator=torch.Generator().manual_seed(0)
    )
    first = model(passages).item()
    for _ in range(20):
        optimizer.zero_grad()
        model(passages).backward()
        optimizer.step()
    assert model(passages).item() < first / 2
