"""EDiT's guard: weights by norm, an odd worker dropped, a round in which all are odd, and the clip."""

from __future__ import annotations

import math

import pytest
import torch

from tests.runtime.training import job
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.runtime.watch import LEAST_ROUNDS, NormWatch
from tightwire.sync import NormGuard
from tightwire.transport import Transport, run_threads


class Pull(torch.nn.Module):
    """A parameter whose gradient is what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(1))


def pulled(transport: Transport, plan: str, pulls: list[tuple[float, float]]) -> tuple[list[float], int]:
    """Returns x after each step of rate 0.1, and how many rounds were dropped."""
    model, seen = Pull(), []
    with job(transport, plan, model=model) as j:
        for pull in pulls:
            j.optimizer.zero_grad()
            (-pull[transport.rank] * model.x).sum().backward()
            j.optimizer.step()
            seen.append(model.x.item())
    return seen, j.run.report().skipped


PLAIN = "edit:1,outer_lr=1,outer_momentum=0"


def test_weights_are_the_softmax_of_norms() -> None:
    """Norms 1 and 3: e^−1 and e^−3, as algorithm 2 weighs them."""
    (x, _), _ = run_threads(2, lambda t: pulled(t, PLAIN, [(10.0, 30.0)]), deadline_s=20)
    a, b = math.exp(-1), math.exp(-3)
    assert x[-1] == pytest.approx((a * 1 + b * 3) / (a + b), rel=1e-5)


def test_the_mean_is_clipped() -> None:
    (x, _), _ = run_threads(2, lambda t: pulled(t, PLAIN + ",clip=0.5", [(10.0, 10.0)]), deadline_s=20)
    assert x[-1] == pytest.approx(0.5)


def test_an_odd_worker_does_not_count_and_a_round_of_odd_ones_is_dropped() -> None:
    usual = [(1.0, 1.0)] * LEAST_ROUNDS
    pulls = [*usual, (1.0, 50.0), (60.0, 50.0), (1.0, 1.0)]
    (x, dropped), _ = run_threads(2, lambda t: pulled(t, PLAIN, pulls), deadline_s=20)
    assert dropped == 1
    steps = [after - before for before, after in zip([0.0, *x], x, strict=False)]
    assert steps == pytest.approx([*[0.1] * LEAST_ROUNDS, 0.1, 0.0, 0.1], abs=1e-5)


def test_what_is_odd_is_learnt_from_all() -> None:
    watch = NormWatch(NormGuard(z=3, clip=10))
    for _ in range(LEAST_ROUNDS):
        watch.learn([2.0, 2.0, 2.02])
    assert watch.weigh(1.0) == 1.0
    assert watch.weigh(1.5) == 0.0
    assert watch.told() == [0.0, 0.0, 0.0]
    watch.learn([0.0, 0.0, 0.0])
    other = NormWatch(NormGuard(z=3, clip=10))
    other.load_state_dict(watch.state_dict())
    assert other.weigh(1.2) == watch.weigh(1.2)


def test_a_guard_that_lets_nothing_through() -> None:
    with pytest.raises(PlanError, match="both are above 0"):
        Plan.parse("edit:4,z=0")
