"""Workers that are not alike: who waits for whom, and what a share of the batch by speed is worth."""

from __future__ import annotations

import dataclasses

import pytest

from tightwire.cluster import Cluster, WorkerKind
from tightwire.errors import FileError
from tightwire.planner import recommend
from tightwire.planner.explain_workers import batch_shares
from tightwire.profile import Profile
from tightwire.simulate import predict
from tightwire.simulate.stragglers import late_s, slowest_delay

EXACT = dataclasses.replace(
    Profile.uniform(layers=4, numel_per_layer=1000, forward_s=0.1, backward_s=0.2), noise=0.0, samples=64
)
FAST, SLOW = WorkerKind(name="a100", workers=2), WorkerKind(name="v100", workers=2, speed=0.5)


def cluster(*kinds: WorkerKind) -> Cluster:
    workers = sum(kind.workers for kind in kinds)
    return dataclasses.replace(Cluster.uniform(workers, 1e11, 0.0), kinds=kinds)


@pytest.mark.parametrize(
    "plan", ["bsp", "bsp/ps", "local:4", "delayed:1", "ssp:2/ps", "bsp/gossip:exponential"]
)
def test_all_who_wait_wait_for_the_slowest(plan: str) -> None:
    assert predict(plan, EXACT, cluster(FAST, SLOW)).step_s == pytest.approx(0.6, rel=0.01)
    assert predict(plan, EXACT, cluster(FAST)).step_s == pytest.approx(0.3, rel=0.01)


def test_who_waits_for_nobody_goes_at_the_pace_of_the_mean() -> None:
    # Two make 1/0.3 steps a second, two 1/0.6: 10 a second of all four.
    asp, diloco = (predict(plan, EXACT, cluster(FAST, SLOW)) for plan in ("asp/ps", "async-diloco:8/ps"))
    assert asp.step_s == pytest.approx(0.4, rel=0.01)
    assert diloco.step_s == pytest.approx(0.4, rel=0.01)
    assert diloco.bytes_per_step == pytest.approx(asp.bytes_per_step / 8, abs=1)


def test_a_quorum_waits_for_its_last_one_and_for_the_grace() -> None:
    both, plain = cluster(FAST, SLOW), predict("diloco:4", EXACT, cluster(FAST, SLOW))
    for plan, step_s in (("quorum=0.5", 0.3), ("quorum=0.5,grace=1s", 0.55), ("quorum=0.5,grace=9s", 0.6)):
        found = predict(f"diloco:4,{plan}", EXACT, both)
        assert found.step_s == pytest.approx(step_s, rel=0.01)
        assert found.bytes_per_step == plain.bytes_per_step


def test_shares_by_speed_take_as_long_for_all() -> None:
    fair = cluster(FAST, SLOW).balanced()
    assert batch_shares(fair, 64) == {"a100": 85, "v100": 43}
    assert predict("bsp", EXACT, fair).step_s == pytest.approx(0.4, rel=0.01)
    found = recommend(EXACT, cluster(FAST, SLOW))
    (said,) = [sentence for sentence in found.why if "shared by speed" in sentence]
    assert "85 samples for each a100, 43 samples for each v100" in said
    assert recommend(EXACT, cluster(FAST, SLOW), shares="speed").chosen.step_s == pytest.approx(0.4, rel=0.01)


def test_kinds_that_are_alike_are_late_as_the_formula_says() -> None:
    noisy = dataclasses.replace(EXACT, noise=0.05)
    same = cluster(FAST, WorkerKind(name="other", workers=6))
    expected_s = slowest_delay(8) * 0.05 * noisy.compute_s
    assert late_s(noisy, same) == pytest.approx(expected_s, rel=0.05)
    assert late_s(noisy, Cluster.uniform(8, 1e9, 0.0)) == pytest.approx(expected_s)


def test_measured_delays_are_drawn_as_they_were_measured() -> None:
    # One step in ten takes three times as long: of 8 such workers, one is late in 1 − 0.9⁸ of all steps.
    late = WorkerKind(name="cloud", workers=8, delays=(1.0,) * 9 + (3.0,))
    expected_s = 2 * (1 - 0.9**8) * EXACT.compute_s
    assert late_s(EXACT, cluster(late)) == pytest.approx(expected_s, rel=0.05)
    one = late_s(EXACT, cluster(late), steps=100)  # over many steps alone they average out
    assert one < 100 * 0.45 * EXACT.compute_s


def test_a_slow_line_is_routed_around_and_told_what_it_sends() -> None:
    slow = WorkerKind(name="far", workers=1, bandwidth_bytes_per_s=1e7)
    lines = cluster(WorkerKind(name="near", workers=3, bandwidth_bytes_per_s=1e8), slow)
    assert lines.slowest_bytes_per_s == 1e7
    assert lines.links is not None
    assert [lines.links.directions[2 * i].bandwidth_bytes_per_s for i in range(4)] == [1e8, 1e8, 1e8, 1e7]
    assert lines.scaled(2.0).slowest_bytes_per_s == 2e7
    heavy = Profile.uniform(layers=4, numel_per_layer=10**6, forward_s=0.05, backward_s=0.1)
    found = recommend(heavy, lines)
    assert found.chosen.plan.architecture != found.stock.plan.architecture or found.stays
    assert any(row.plan.architecture.name == "allreduce:synthesised" or "synthesised" in str(row.plan)
               for row in found.rows)  # fmt: skip
    (said,) = [sentence for sentence in found.why if sentence.startswith("In a step each near")]
    assert "each far (80 Mb/s)" in said


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        ((FAST, FAST), "appears twice"),
        ((FAST, dataclasses.replace(SLOW, batch_share=3.0)), "must be 1"),
    ],
)
def test_kinds_that_cannot_be_are_named(kinds: tuple[WorkerKind, ...], says: str) -> None:
    with pytest.raises(FileError, match=says):
        cluster(*kinds)
    with pytest.raises(FileError, match="make them equal"):
        dataclasses.replace(Cluster.uniform(3, 1e9, 0.0), kinds=(FAST,))
