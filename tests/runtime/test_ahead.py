"""Eager DiLoCo against the paper's own form: every replica steps with its Δₜ/n and the others' Δₜ₋₁/n."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.training import job
from tightwire.errors import AttachError
from tightwire.transport import Transport, run_threads

WORKERS, STEPS, ROUNDS = 3, 2, 5
TARGETS = (1.0, 3.0, -2.0)


class Valley(nn.Module):
    """½c(x − target)², unlike from worker to worker."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.full((1,), 0.5))
        self.rank = rank

    def forward(self) -> Tensor:
        return 0.5 * (1 + self.rank) * (self.x - TARGETS[self.rank]).square().sum()


def descend(model: Valley, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model().backward()
    optimizer.step()


def written_out() -> list[list[float]]:
    """Algorithm 2 of arXiv:2502.12996: returns each replica's x after each round."""
    models = [Valley(rank) for rank in range(WORKERS)]
    inner = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    places = [nn.Parameter(torch.full((1,), 0.5)) for _ in range(WORKERS)]
    outer = [torch.optim.SGD([place], lr=0.7, momentum=0.9, nesterov=True) for place in places]
    before = [torch.zeros(1) for _ in range(WORKERS)]
    seen: list[list[float]] = [[] for _ in range(WORKERS)]
    for _ in range(ROUNDS):
        changes = []
        for model, optimizer, place in zip(models, inner, places, strict=True):
            for _ in range(STEPS):
                descend(model, optimizer)
            changes.append((place - model.x).detach())
        for rank, place in enumerate(places):
            others = sum(before[other] for other in range(WORKERS) if other != rank)
            place.grad = (changes[rank] + others) / WORKERS
            outer[rank].step()
            with torch.no_grad():
                models[rank].x.copy_(place)
            seen[rank].append(place.item())
        before = changes
    return seen


def test_a_worker_goes_on_with_its_own_change_and_the_others_of_before() -> None:
    def worker(transport: Transport) -> tuple[list[float], float]:
        model, seen = Valley(transport.rank), []
        with job(transport, f"diloco:{STEPS},overlap={STEPS},eager=true", model=model) as j:
            for step in range(STEPS * ROUNDS):
                descend(model, j.optimizer)
                if step % STEPS == STEPS - 1:
                    seen.append(model.x.item())
        return seen, model.x.item()

    found = run_threads(WORKERS, worker, deadline_s=20)
    for (seen, _), expected in zip(found, written_out(), strict=True):
        assert seen == pytest.approx(expected, abs=1e-5)
    assert len({end for _, end in found}) == 1


def test_an_outer_step_that_is_not_linear_is_refused() -> None:
    def worker(transport: Transport) -> None:
        made = {"outer": lambda agreed: torch.optim.Adam(agreed)}
        with (
            pytest.raises(AttachError, match="leave out `outer`"),
            job(transport, "diloco:2,overlap=2,eager=true", **made),
        ):
            pass

    run_threads(2, worker, deadline_s=20)
