"""Dion against its algorithm written out, with one momentum of all workers' mean."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tightwire.averaging import Dion
from tightwire.averaging._powersgd import noise
from tightwire.buckets import plan_layout
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.transport import Transport, run_threads

WORKERS, ROWS, COLUMNS, RANK, MU = 3, 24, 16, 4, 0.9


def gradient(rank: int, number: int) -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(10 * number + rank))


def written_out(rounds: int) -> list[Tensor]:
    """Algorithm 1 on the mean gradient: by linearity the mean of workers' momenta is its M."""
    m, q = torch.zeros(ROWS, COLUMNS), torch.linalg.qr(noise("w", torch.empty(COLUMNS, RANK))).Q
    seen = []
    for number in range(rounds):
        b = m + torch.stack([gradient(rank, number) for rank in range(WORKERS)]).mean(0)
        p = torch.linalg.qr(b @ q).Q
        r = b.t() @ p
        m = b - (1 - MU) * p @ r.t()
        q = r / r.norm(dim=0)
        seen.append(math.sqrt(ROWS / COLUMNS) * p @ q.t())
    return seen


def test_it_is_the_papers_algorithm_and_workers_keep_their_own_momenta() -> None:
    def worker(transport: Transport) -> tuple[list[Tensor], Tensor]:
        (layout,) = plan_layout({"w": torch.empty(ROWS, COLUMNS), "b": torch.empty(5)}, [[0, 1]])
        averager = Dion(RANK, MU).build(transport, layout, tag=0)
        means = []
        for number in range(5):
            given = torch.cat(
                [gradient(transport.rank, number).flatten(), torch.full((5,), float(transport.rank))]
            )
            mean = torch.empty_like(given)
            averager.run(given, mean, seed=number)
            averager.keep()
            assert mean[-5:].tolist() == [1.0] * 5
            means.append(mean[:-5].view(ROWS, COLUMNS))
        return means, averager.memory()["w"].clone()

    found = run_threads(WORKERS, worker, deadline_s=20)
    for mine, theirs in zip(found[0][0], written_out(5), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert not torch.equal(found[0][1], found[1][1])
    singular = torch.linalg.svdvals(found[0][0][-1])
    assert float(singular[RANK]) < 1e-4


@pytest.mark.parametrize(
    ("text", "said"), [("dion:0", "at least 1"), ("dion:4,mu=1", "never apply"), ("dion:4+ef", "momentum")]
)
def test_what_cannot_be_says_why(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.parse(f"bsp/allreduce/{text}")
