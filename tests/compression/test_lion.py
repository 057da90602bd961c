"""Distributed Lion against its Algorithm 1, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.runtime.training import Net, job, loss_of, same, values
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.transport import Transport, run_threads

WORKERS, RATE, DECAY = 3, 0.01, 0.1


def decaying(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE, weight_decay=DECAY)  # type: ignore[arg-type]


def written_out(outcome: str, steps: int) -> list[Tensor]:
    model = Net(seed=0)
    parameters = list(model.parameters())
    momenta = [[torch.zeros_like(p) for p in parameters] for _ in range(WORKERS)]
    for step in range(steps):
        votes = [torch.zeros_like(p) for p in parameters]
        for rank, own in enumerate(momenta):
            gradients = torch.autograd.grad(loss_of(model, rank, step), parameters)
            for vote, m, g in zip(votes, own, gradients, strict=True):
                vote += (0.9 * m + 0.1 * g).sign()
                m.mul_(0.99).add_(g, alpha=0.01)
        with torch.no_grad():
            for p, vote in zip(parameters, votes, strict=True):
                p -= RATE * ((vote.sign() if outcome == "majority" else vote / WORKERS) + DECAY * p)
    return values(model)


@pytest.mark.parametrize("outcome", ["majority", "mean"])
def test_it_is_the_papers_algorithm(outcome: str) -> None:
    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, f"bsp/allreduce/distributed-lion:{outcome}", optimizer=decaying) as j:
            for step in range(6):
                j.step(step)
        assert j.run.report().sent_bytes == j.run.report().planned_bytes
        return values(j.model)

    found = run_threads(WORKERS, worker, deadline_s=20)
    assert all(same(other, found[0]) for other in found)
    for mine, theirs in zip(found[0], written_out(outcome, 6), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_feeding_signs_back_is_refused() -> None:
    with pytest.raises(PlanError, match="no leftover to feed back"):
        Plan.parse("bsp/allreduce/meansign+ef")
