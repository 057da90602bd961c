"""MuLoCo: Muon for matrices and AdamW for the rest, in rounds, against the same written out in one process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.runtime.training import assert_close, values
from tightwire._attach import attach
from tightwire.transport import Transport, run_threads

WORKERS, STEPS = 2, 2


def made(seed: int) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(6, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    muon = torch.optim.Muon([model.weight], lr=0.05, weight_decay=0.0)
    return model, [muon, torch.optim.AdamW([model.bias], lr=0.01)]


def step(model: nn.Module, optimizers: list[torch.optim.Optimizer], rank: int, number: int) -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * number + rank))
    for optimizer in optimizers:
        optimizer.zero_grad()
    (model(x) - rank).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_it_is_diloco_with_both_optimizers() -> None:
    def worker(transport: Transport) -> list[Tensor]:
        model, optimizers = made(transport.rank)
        with attach(model, optimizers, f"muloco:{STEPS}", transport=transport) as run:
            for number in range(2 * STEPS):
                step(model, optimizers, transport.rank, number)
        assert run.report().rounds == 2
        return values(model)

    replicas = [made(0) for _ in range(WORKERS)]
    agreed = [nn.Parameter(p.detach().clone()) for p in replicas[0][0].parameters()]
    outer = torch.optim.SGD(agreed, lr=0.7, momentum=0.9, nesterov=True)
    for turn in range(2):
        for rank, (model, optimizers) in enumerate(replicas):
            for number in range(turn * STEPS, (turn + 1) * STEPS):
                step(model, optimizers, rank, number)
        with torch.no_grad():
            for i, anchor in enumerate(agreed):
                ends = torch.stack([list(model.parameters())[i] for model, _ in replicas])
                anchor.grad = anchor - ends.mean(0)
        outer.step()
        with torch.no_grad():
            for model, _ in replicas:
                for parameter, anchor in zip(model.parameters(), agreed, strict=True):
                    parameter.copy_(anchor)
    expected = [anchor.detach() for anchor in agreed]
    for found in run_threads(WORKERS, worker, deadline_s=20):
        assert_close(found, expected, atol=1e-5)
