"""Sweeps: a choice at every point of a grid, as `recommend` would choose."""

import dataclasses

import pytest

from tightwire.cluster import Cluster, Fit
from tightwire.cluster.presets import preset
from tightwire.errors import PlanError
from tightwire.planner import STOCK, predict, sweep
from tightwire.planner.sweep import parse_axes, sweep_figure, table
from tightwire.profile import Profile

PROFILE = Profile.uniform(layers=6, numel_per_layer=500_000, forward_s=0.1, backward_s=0.2)
CLUSTER = Cluster.uniform(4, 119e6, 5e-5)
PLANS = ["bsp/allreduce/none/mgwfbp", "bsp/allreduce:ring/bf16"]


def test_every_point_has_a_row_and_more_bandwidth_never_hurts() -> None:
    axes = parse_axes("workers=4..64,bandwidth=100mbit..100gbit")
    rows = sweep(PROFILE, CLUSTER, axes, plans=PLANS)
    assert len(rows) == 5 * 9
    for workers in (4, 8, 16, 32, 64):
        steps = [row.stock_step_s for row in rows if row.workers == workers]
        assert steps == sorted(steps, reverse=True)
    assert all(row.chosen.step_s <= row.stock_step_s for row in rows)
    assert rows[-1].efficiency == pytest.approx(1.0, abs=0.1)
    head, cells = table(rows)
    assert {len(line) for line in cells} == {len(head)}
    drawn = sweep_figure(rows).to_dict()
    assert [curve["name"] for curve in drawn["data"]] == [f"{n} workers" for n in (4, 8, 16, 32, 64)]
    assert "Gb/s" in drawn["layout"]["xaxis"]["title"]["text"]


def test_a_point_is_what_predict_says_of_it() -> None:
    (row,) = sweep(PROFILE, CLUSTER, parse_axes("latency=1ms,compute=600ms"), plans=PLANS)
    there = Cluster.uniform(4, 119e6, 1e-3)
    slow = Profile.uniform(layers=6, numel_per_layer=500_000, forward_s=0.2, backward_s=0.4)
    assert row.stock_step_s == pytest.approx(predict(STOCK, slow, there).step_s)


@pytest.mark.parametrize(
    "text",
    ["speed=1..2", "workers", "workers=9..3", "workers=two..3", "bandwidth=0..1gbit", "bandwidth=1..2"],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="--sweep"):
        parse_axes(text)


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        (preset("dgx-a100", 2), "latencies of their own"),
        (
            dataclasses.replace(CLUSTER, fits=(Fit(program="native", alpha_s=1e-3, beta_s_per_byte=1e-8),)),
            "native was timed",
        ),
    ],
)
def test_a_latency_from_which_nothing_follows_is_refused(cluster: Cluster, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        sweep(PROFILE, cluster, parse_axes("latency=1us..1ms"), plans=PLANS)
