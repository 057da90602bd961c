"""A small training job on threads, and the same job in plain PyTorch on all data at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tightwire._attach import attach
from tightwire.runtime import Report, Run
from tightwire.transport import Single, Transport, run_threads

MakeOptimizer = Callable[[Any], Optimizer]


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def momentum(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


class Net(nn.Module):
    """Odd sizes, a tied weight, a scalar and an empty parameter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.again = nn.Linear(5, 7, bias=False)
        self.last = nn.Linear(7, 3)
        self.again.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0, 3))
        initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x) + self.again(x.flip(1)))
        return self.last(hidden) * self.scale + self.nothing.sum()


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Draws parameters from a generator of their own: the global one is shared by threads."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def batch(rank: int, step: int) -> Tensor:
    """Returns what a worker trains on in a step: (4, 5)."""
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(1000 * rank + step))


def loss_of(model: nn.Module, rank: int, step: int) -> Tensor:
    out: Tensor = model(batch(rank, step))
    return (out - rank).square().mean()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_close(a: list[Tensor], b: list[Tensor], atol: float = 1e-6) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


@dataclass
class Job:
    """One worker's model, optimizer and run.

    Attributes:
        seen: the parameters after each step.
    """

    model: nn.Module
    optimizer: Optimizer
    run: Run
    rank: int
    seen: list[list[Tensor]]

    def step(self, step: int, *, factor: float = 1.0) -> None:
        self.optimizer.zero_grad()
        (loss_of(self.model, self.rank, step) * factor).backward()
        self.optimizer.step()
        self.seen.append(values(self.model))


@contextlib.contextmanager
def job(
    transport: Transport,
    plan: str,
    *,
    model: nn.Module | None = None,
    optimizer: MakeOptimizer = sgd,
    **options: Any,
) -> Iterator[Job]:
    """Attaches a fresh Net, which differs from rank to rank until then."""
    model = Net(seed=transport.rank) if model is None else model
    made = optimizer(model.parameters())
    with attach(model, made, plan, transport=transport, **options) as run:
        yield Job(model, made, run, data_of(transport), [])


def data_of(transport: Transport) -> int:
    """Returns whose data a worker has: of an elastic job its own, whatever its rank is and will be."""
    door = transport.door if isinstance(transport, Single) else None
    return transport.rank if door is None else int(door.name.split()[-1])


@dataclass(frozen=True)
class Trained:
    """What one worker ended with."""

    parameters: list[Tensor]
    seen: list[list[Tensor]]
    report: Report


def train(transport: Transport, plan: str, *, steps: int = 4, **options: Any) -> Trained:
    with job(transport, plan, **options) as j:
        for step in range(steps):
            j.step(step)
    return Trained(values(j.model), j.seen, j.run.report())


def train_all(n: int, plan: str, **options: Any) -> list[Trained]:
    return run_threads(n, lambda transport: train(transport, plan, **options), deadline_s=20)


def plain(n: int, *, steps: int = 4, optimizer: MakeOptimizer = sgd) -> list[Tensor]:
    """Trains one Net on the mean loss of `n` workers, without Tightwire."""
    model = Net(seed=0)
    made = optimizer(model.parameters())
    for step in range(steps):
        made.zero_grad()
        (sum(loss_of(model, rank, step) for rank in range(n)) / n).backward()  # type: ignore[union-attr]
        made.step()
    return values(model)
