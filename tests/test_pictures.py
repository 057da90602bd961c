"""Every picture that the program draws can be read."""

from __future__ import annotations

import re

import pytest

from tests.pictures import check_picture, drawn
from tests.validate.test_seven_in_lab import cell_of
from tightwire.cli import jobs as jobs_command
from tightwire.cluster import Cluster
from tightwire.jobs.predict import JobOutcome, PolicyOutcome
from tightwire.parallel import Accelerators, Layout, TrainingCost, Transformer
from tightwire.parallel.time import LayerCut
from tightwire.parallel.written import picture as ranks_and_links
from tightwire.planner import sweep
from tightwire.planner.curves import figure
from tightwire.planner.landscape_picture import picture as map_picture
from tightwire.planner.ranking import rank
from tightwire.planner.sweep import sweep_figure
from tightwire.profile import Profile
from tightwire.validate import seven_report, utilisation
from tightwire.validate.seven_in_lab import PLANS

PROFILE = Profile.uniform(layers=4, numel_per_layer=10**6, forward_s=0.1, backward_s=0.2)
CLUSTER = Cluster.uniform(4, 119e6, 5e-5)


def test_what_plan_draws() -> None:
    check_picture(figure(rank(PROFILE, CLUSTER, "lossless")).to_dict())
    axes: dict[str, list[float]] = {"bandwidth": [1e8, 1e9], "workers": [2, 8]}
    rows = sweep(PROFILE, CLUSTER, axes, plans=["bsp/allreduce/none/mgwfbp"])
    found = sweep_figure(rows).to_dict()
    check_picture(found)
    assert [trace["name"] for trace in found["data"]] == ["2 workers", "8 workers"]


def test_what_parallel_and_jobs_draw() -> None:
    tiny = Transformer(layers=2, hidden=8, heads=2, seq_len=8)
    devices = Accelerators()
    cut = LayerCut(tiny, Layout(tensor=2, data=2), TrainingCost(batch=2), devices, devices.network)
    rows = [{"dimension": "tensor", "size": 2, "link": "node", "ranks": 2}]
    check_picture(ranks_and_links(cut, rows, workers=4).to_dict())
    job = JobOutcome(name="a", step_s=1.0, alone_s=1.0, tail_s=1.0, steps=((0.0, 0.5, 0.5, 1.0),))
    outcome = PolicyOutcome(policy="fair", jobs=(job,))
    check_picture(jobs_command.drawing_of([outcome]).to_dict())


def test_what_validation_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = drawn(monkeypatch, lambda: utilisation.plot(utilisation.MODELS[:2], ["bsp"]))
    check_picture(found)
    steps_s = {method: 1.1 + number / 10 for number, method in enumerate(PLANS)}
    cells = [cell_of(steps_s, ratio) for ratio in (0.5, 2.0)]
    (found,) = drawn(monkeypatch, lambda: seven_report.plot(cells, "here"))
    check_picture(found)


def test_the_map_is_a_picture_whose_text_stays_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    from tightwire.planner import landscape, landscape_picture

    for module in (landscape, landscape_picture):
        monkeypatch.setattr(module, "COMPUTE_S", (0.1,))
        monkeypatch.setattr(module, "GIGABITS", (0.1, 1.0))
    monkeypatch.setattr(landscape, "WORKERS", (4,))
    cells = list(landscape.survey(workers=(4,), compute_s=(0.1,), gigabits=(0.1, 1.0)))
    drawing = map_picture(cells, 4, "tightwire map")
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', drawing).groups())  # type: ignore[union-attr]
    for x, y in re.findall(r'<text x="([\d.-]+)" y="([\d.-]+)"', drawing):
        assert 0 <= float(x) <= width
        assert 0 <= float(y) <= height
    assert "Which method is best where" in drawing
    assert "across: rate of each worker's link, Gb/s" in drawing
