"""Replicas that a plan promises to keep equal: made so where it begins, and the odd one named where they part."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tightwire._attach import attach
from tightwire.errors import MismatchError
from tightwire.plan import Plan
from tightwire.runtime import replicas
from tightwire.runtime.agreement import copy_from_first
from tightwire.runtime.replicas import digest_of
from tightwire.transport import Counting, Transport, run_threads

# One of every kind of policy: those after which replicas are unlike, and those that keep them equal.
PARTING = ["local:2", "diloco:2", "easgd:2", "slowmo:2", "bsp/gossip:ring", "asp/gossip:ad-psgd", "gaia:0.01"]
EQUAL = ["bsp", "delayed:1", "lag", "bsp/allreduce/none/p3"]


class Job:
    """One rank's model, optimizer and data."""

    def __init__(self, rank: int, optimizer: str = "adamw") -> None:
        torch.manual_seed(rank)
        self.rank, self.model = rank, nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        parameters = self.model.parameters()
        self.optimizer: Optimizer = (
            torch.optim.AdamW(parameters, 0.02)
            if optimizer == "adamw"
            else torch.optim.SGD(parameters, 0.05, momentum=0.9)
        )

    def step(self, number: int) -> None:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(100 * self.rank + number))
        self.optimizer.zero_grad()
        (self.model(x) - self.rank).square().mean().backward()
        self.optimizer.step()

    def flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()]).clone()


@pytest.mark.filterwarnings("ignore:leftovers and momenta")
@pytest.mark.parametrize(("first", "then"), list(itertools.product(PARTING, EQUAL)))
def test_every_change_to_a_plan_that_keeps_replicas_equal(first: str, then: str) -> None:
    def worker(transport: Transport) -> list[Tensor]:
        job = Job(transport.rank, "adamw" if len(first) % 2 else "momentum")
        with attach(job.model, job.optimizer, first, transport=transport) as run:
            for number in range(5):
                job.step(number)
            run.adopt(Plan.parse(then))
            for number in range(5, 10):
                job.step(number)
            run.wait()
        with attach(job.model, job.optimizer, first, transport=transport):
            for number in range(5):
                job.step(number)
        with attach(job.model, job.optimizer, then, transport=transport):  # an attach is a change as well
            for number in range(5):
                job.step(number)
        return [job.flat(), *(s for p in job.model.parameters() for s in job.optimizer.state[p].values())]

    mine, *others = run_threads(3, worker)
    assert all(torch.equal(a, b) for other in others for a, b in zip(mine, other, strict=True))


@pytest.mark.parametrize("fault", ["parameter", "step", "backward"])
def test_a_replica_that_parted_is_named(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "STEPS_BETWEEN_DIGESTS", 4)

    def worker(transport: Transport) -> None:
        job = Job(transport.rank)
        with attach(job.model, job.optimizer, "bsp", transport=transport):
            for number in range(12):
                if number == 5 and transport.rank == 1:
                    if fault == "parameter":
                        with torch.no_grad():
                            job.model[0].weight[2, 3] += 1e-6
                    elif fault == "step":
                        job.optimizer.step()
                    else:
                        job.model(torch.ones(1, 6)).sum().backward()
                job.step(number)

    what = "bits of 0.weight" if fault == "parameter" else "optimizer steps since all met last"
    with pytest.raises(MismatchError, match=rf"{what}: ranks 0 and 2 have [0-9a-f]+; rank 1 has") as caught:
        run_threads(3, worker, deadline_s=10)
    assert "ranks that train together have parted" in str(caught.value)


def test_uneven_ends_are_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "STEPS_BETWEEN_DIGESTS", 1)

    def worker(transport: Transport) -> Tensor:
        job = Job(transport.rank)
        with attach(job.model, job.optimizer, "bsp", transport=transport) as run:
            for epoch in range(2):
                for number in range(3 + transport.rank):
                    job.step(10 * epoch + number)
                run.finish()
        return job.flat()

    a, b, c = run_threads(3, worker)
    assert torch.equal(a, b)
    assert torch.equal(b, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int8])
def test_the_digest_notices_any_bit(dtype: torch.dtype) -> None:
    x = (torch.arange(300) % 100).to(dtype)
    same = x.clone()
    assert digest_of([x]) == digest_of([same])
    for place in (0, 150, 299):
        changed = x.clone()
        changed[place] += 1
        assert digest_of([changed]) != digest_of([x])
    moved = x.clone()
    moved[3], moved[4] = x[4].clone(), x[3].clone()
    assert digest_of([moved]) != digest_of([x])
    assert digest_of([x, same + 1]) != digest_of([same + 1, x])


def test_only_what_differs_is_sent_to_make_replicas_equal() -> None:
    def worker(transport: Transport) -> tuple[int, float]:
        counting = Counting(transport)
        alike, unlike = torch.ones(1000), torch.full((3,), float(transport.rank))
        copy_from_first(counting, [alike, torch.zeros(0), unlike])
        copy_from_first(counting, [alike, unlike])
        return counting.bytes_sent, float(unlike.sum())

    told = run_threads(3, worker, deadline_s=20)
    assert sum(sent for sent, _ in told) == 2 * 12  # along a tree
    assert [total for _, total in told] == [0.0] * 3
