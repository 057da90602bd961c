"""Rankings by cost: hours of workers, and gigabytes that leave a zone."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from tightwire.architecture import build
from tightwire.cluster import Cluster, Level, Prices, WorkerKind
from tightwire.errors import FileError, PlanError
from tightwire.planner import predict, recommend, sweep
from tightwire.planner.money import cost_per_step, steps_per_epoch, toll_s
from tightwire.profile import Profile

PROFILE = Profile.uniform(layers=4, numel_per_layer=10**6, forward_s=0.1, backward_s=0.2)
ZONES = Cluster.of_levels(
    Level(name="zone", workers=2, bandwidth_bytes_per_s=1e9),
    Level(name="region", workers=4, bandwidth_bytes_per_s=1e9),
)


def priced(per_worker_hour: float = 1.0, per_gb_across: float = 0.0) -> Cluster:
    prices = Prices(per_worker_hour=per_worker_hour, per_gb_across=per_gb_across, currency="USD")
    return dataclasses.replace(ZONES, prices=prices)


def test_a_step_costs_its_time_and_what_leaves_a_zone() -> None:
    cluster = priced(per_gb_across=0.02)
    row = predict("bsp/allreduce:ring", PROFILE, cluster)
    crossing = sum(t.src // 2 != t.dst // 2 for t in build("ring", 4).transfers)  # 2 of 4 neighbours, 6 steps
    assert row.across_bytes_per_step == crossing * PROFILE.num_bytes // 4
    assert cost_per_step(row, cluster) == pytest.approx(4 * row.step_s / 3600 + crossing * 4e6 * 0.02 / 1e9)
    assert toll_s(row, cluster) * 4 / 3600 == pytest.approx(crossing * 4e6 * 0.02 / 1e9)


@pytest.mark.parametrize(
    "plan",
    ["bsp/ps", "asp/ps", "local:8", "delayed:1", "bsp/allreduce/powersgd:4+ef", "bsp/gossip:exponential"],
)
def test_every_way_of_keeping_in_step_says_what_leaves_a_zone(plan: str) -> None:
    row = predict(plan, PROFILE, priced(per_gb_across=0.02))
    assert 0 < row.across_bytes_per_step <= 4 * row.bytes_per_step
    assert predict(plan, PROFILE, priced()).across_bytes_per_step == 0  # nobody pays for it


def test_traffic_that_costs_more_than_workers_makes_the_plan_with_less_of_it_the_cheapest() -> None:
    by_time, by_cost = (
        recommend(PROFILE, priced(per_gb_across=50.0), allow="lossy", by=by) for by in ("step", "cost")
    )
    assert by_cost.chosen.across_bytes_per_step < by_time.chosen.across_bytes_per_step
    assert cost_per_step(by_cost.chosen, by_cost.cluster) < cost_per_step(by_time.chosen, by_cost.cluster)
    assert "costs" in by_cost.why[0]


def test_without_a_price_there_is_no_ranking_by_cost() -> None:
    with pytest.raises(PlanError, match="--price"):
        recommend(PROFILE, ZONES, by="cost")


def test_an_epoch_needs_to_know_a_steps_samples() -> None:
    with pytest.raises(PlanError, match="--batch"):
        recommend(PROFILE, priced(), samples_per_epoch=1000)
    with_samples = dataclasses.replace(PROFILE, samples=32)
    assert steps_per_epoch(with_samples, 4, 1000) == 8
    found = recommend(with_samples, priced(), samples_per_epoch=1000)
    assert any(sentence.startswith("An epoch of 1,000 samples is 8 steps") for sentence in found.why)


def test_a_sweep_by_cost_puts_the_cheapest_samples_first() -> None:
    cluster = dataclasses.replace(Cluster.uniform(8, 1e8, 1e-4), prices=Prices(per_worker_hour=2.0))
    rows = sweep(PROFILE, cluster, {"workers": [1, 2, 8]}, by="cost")
    costs = [row.cost_per_million for row in rows]
    assert costs == sorted(costs)
    assert rows[0].workers == 1  # a worker alone waits for nobody
    assert costs[0] == pytest.approx(1e6 * rows[0].stock_step_s * 2 / 3600)


def test_kinds_may_have_prices_of_their_own() -> None:
    kinds = WorkerKind(name="new", workers=1, price_per_hour=5.0), WorkerKind(name="old", workers=3)
    cluster = dataclasses.replace(
        Cluster.uniform(4, 1e9, 0.0), kinds=kinds, prices=Prices(per_worker_hour=1.0)
    )
    assert cluster.price_per_hour == 8.0


def test_prices_are_read_from_a_file_and_written_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "workers: 2\nbandwidth_bytes_per_s: 1.0e+9\nlatency_s: 0.0\n"
        "prices: {per_worker_hour: 2.5, currency: USD, source: a list, date: 2025-06-05}\n"
        "kinds: [{name: a, workers: 1}, {name: b, workers: 1, speed: 0.5}]\n"
    )
    cluster = Cluster.read(path)
    assert cluster.prices is not None
    assert cluster.prices.origin == "a list of 2025-06-05"
    cluster.write(path)
    assert Cluster.read(path) == cluster


def test_a_price_of_traffic_needs_links_that_are_charged() -> None:
    from tightwire.cluster.topologies import star

    graph = star(2, bandwidth_bytes_per_s=1e9)
    with pytest.raises(FileError, match="charged: true"):
        dataclasses.replace(Cluster.of_graph(graph), prices=Prices(per_gb_across=0.1))
    with pytest.raises(FileError, match="is no day"):
        Prices(date="28/11/2026")
