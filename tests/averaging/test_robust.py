"""Medians and trimmed means: their definitions, and that one wrong worker does not carry them away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tightwire.averaging import Median, TrimmedMean
from tightwire.averaging.method import AveragingMethod
from tightwire.buckets import plan_layout
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.transport import Transport, run_threads


def average(method: AveragingMethod, given: Tensor) -> Tensor:
    def worker(transport: Transport) -> Tensor:
        (layout,) = plan_layout({"x": given[0]}, [[0]])
        mean = torch.empty(given.shape[1])
        method.build(transport, layout, tag=0).run(given[transport.rank].clone(), mean, seed=0)
        return mean

    means = run_threads(len(given), worker, deadline_s=20)
    assert all(torch.equal(mean, means[0]) for mean in means)
    return means[0]


@pytest.mark.parametrize("n", [3, 4, 5])
def test_they_are_their_definitions(n: int) -> None:
    given = torch.randn(n, 1001, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(average(Median(), given), given.quantile(0.5, dim=0))
    trimmed = given.sort(0).values[1:-1].mean(0)
    torch.testing.assert_close(average(TrimmedMean(1 / n), given), trimmed)


def test_a_wrong_worker_is_overruled() -> None:
    given = torch.ones(4, 8) + 0.1 * torch.arange(4.0)[:, None]
    given[2] = -1e30
    for method in (Median(), TrimmedMean(0.25)):
        assert bool(((average(method, given) >= 1) & (average(method, given) <= 1.3)).all())


def test_what_cannot_be_says_why() -> None:
    with pytest.raises(PlanError, match="leaves nothing"):
        TrimmedMean(0.5)
    with pytest.raises(PlanError, match="not to be sent again"):
        Plan.parse("bsp/allreduce/median+ef")
