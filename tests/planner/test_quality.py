"""How many more steps plans need: the table, its making, and rankings by it."""

import math
from pathlib import Path

import pytest

from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.planner.quality import (
    GROWS_AS,
    LEAST_SHARE,
    STUDIED_NOISE,
    STUDIED_STEPS,
    Situation,
    extra_steps,
    measured,
    read,
    steps_for,
    table,
)
from tightwire.planner.ranking import more_steps, rank, sooner
from tightwire.profile import Profile

RESULTS = Path(__file__).parents[2] / "results"
DENSE = [(100, 3.0), (200, 2.5), (400, 2.0)]


def factor(plan: str) -> float:
    return extra_steps(Plan.parse(plan)).factor


def test_exact_plans_need_no_more_steps() -> None:
    for plan in ("bsp", "bsp/ps", "bsp/allreduce/zstd", "bsp/allreduce:ring/none/bytescheduler"):
        found = extra_steps(Plan.parse(plan))
        assert (found.factor, found.spread) == (1.0, 0.0), plan


@pytest.mark.parametrize(
    ("loss", "steps"), [(3.0, 100), (2.75, 141.4), (2.5, 200), (2.0, 400), (1.5, 800), (3.5, 50)]
)
def test_a_loss_is_worth_the_steps_that_dense_gradients_need_for_it(loss: float, steps: float) -> None:
    assert steps_for(loss, DENSE) == pytest.approx(steps, rel=1e-3)


def test_trials_become_factors_with_a_spread() -> None:
    trials = [{"plan": "a", "steps": 400, "metric": loss, "source": "s"} for loss in (2.5, 2.5, 2.0)]
    found = measured(trials, DENSE)["a"]
    assert found.factor == pytest.approx(2 ** (2 / 3), rel=1e-3)
    assert found.spread > 0.1
    assert found.low <= found.factor <= found.high


def test_the_table_holds_every_family_and_orders_methods_as_their_studies_do() -> None:
    assert all(len(rows) >= 8 for rows in table().values())
    assert (
        factor("bsp/allreduce/int4+ef")
        < factor("bsp/allreduce/topk:0.01+ef")
        < factor("bsp/allreduce/randomk:0.05+ef")
    )
    assert factor("local:2") < factor("local:8") < factor("local:16") < factor("local:32")
    assert all(row.source for rows in table().values() for row in rows.values())


def test_what_was_not_measured_is_a_guess_with_a_wide_spread() -> None:
    guess, known = (extra_steps(Plan.parse(f"bsp/allreduce/{text}")) for text in ("int2", "int4+ef"))
    assert not guess.source
    assert guess.spread > 2 * known.spread


def test_by_loss_the_least_time_to_the_loss_is_chosen_and_only_if_sure() -> None:
    profile = Profile.uniform(layers=8, numel_per_layer=400_000, forward_s=0.05, backward_s=0.1)
    slow = rank(profile, Cluster.uniform(4, 12e6, 1e-4), "lossy", by="loss")
    assert not slow.stays
    best_s = more_steps(slow.chosen.plan) * slow.chosen.step_s
    assert sooner(slow.chosen, slow.stock) >= 0.75
    times = [more_steps(row.plan) * row.step_s for row in slow.rows]
    assert times == sorted(times)
    assert best_s <= slow.stock.step_s
    assert rank(profile, Cluster.uniform(4, 12e9, 1e-6), "lossy", by="loss").stays


def test_noise_of_gradients_drowns_what_feedback_and_staleness_do() -> None:
    for text in ("bsp/allreduce/topk:0.01+ef", "local:8"):
        plan = Plan.parse(text)
        asis, quiet, noisy = (extra_steps(plan, Situation(noise)) for noise in (STUDIED_NOISE, 0.0, 3.0))
        assert 1.0 < noisy.factor < extra_steps(plan).factor < quiet.factor
        assert asis == extra_steps(plan)
        assert noisy.spread > asis.spread
        assert math.isclose(math.log(noisy.factor), LEAST_SHARE * math.log(asis.factor))


def test_noise_of_a_codec_without_feedback_is_its_own() -> None:
    plan = Plan.parse("bsp/allreduce:allgather/qsgd:7")
    assert extra_steps(plan, Situation(3.0)).factor == extra_steps(plan).factor


def test_in_a_short_run_less_is_lost() -> None:
    for text in ("bsp/allreduce/powersgd:4+ef", "local:8", "bsp/allreduce:allgather/qsgd:7"):
        plan = Plan.parse(text)
        few, many = (extra_steps(plan, Situation(steps=n)) for n in (STUDIED_STEPS // 4, STUDIED_STEPS))
        assert many == extra_steps(plan)
        assert math.isclose(few.factor, many.factor**4**-GROWS_AS)
        assert few.spread < 2 * many.spread


def test_the_table_is_what_the_kept_results_say() -> None:
    assert read(RESULTS) == table()
