"""EF21-Muon: each worker follows its moving average by top-k of the change, and Muon steps with the mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tightwire._attach import attach
from tightwire.transport import Transport, run_threads

WORKERS, STEPS, RATIO, BETA = 2, 4, 0.25, 0.8


def model_of() -> nn.Module:
    model = nn.Linear(8, 6, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    return model


def loss_of(model: nn.Module, rank: int, step: int) -> Tensor:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(10 * step + rank))
    out: Tensor = model(x)
    return (out - rank).square().mean()


def muon(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Muon(model.parameters(), lr=0.05, momentum=0.0, nesterov=False, weight_decay=0.0)


def test_it_is_the_papers_algorithm() -> None:
    def worker(transport: Transport) -> Tensor:
        model = model_of()
        optimizer = muon(model)
        with attach(model, optimizer, f"bsp/allreduce/ef21-muon:{RATIO},beta={BETA}", transport=transport):
            for step in range(STEPS):
                optimizer.zero_grad()
                loss_of(model, transport.rank, step).backward()
                optimizer.step()
        return next(model.parameters()).detach().clone()

    model = model_of()
    optimizer, (weight,) = muon(model), model.parameters()
    momenta, followed = torch.zeros(WORKERS, 48), torch.zeros(WORKERS, 48)
    for step in range(STEPS):
        for rank in range(WORKERS):
            (g,) = torch.autograd.grad(loss_of(model, rank, step), [weight])
            momenta[rank] = BETA * momenta[rank] + (1 - BETA) * g.flatten()
            change = momenta[rank] - followed[rank]
            places = change.abs().topk(12).indices
            followed[rank, places] += change[places]
        weight.grad = followed.mean(0).view(6, 8)
        optimizer.step()
    for found in run_threads(WORKERS, worker, deadline_s=20):
        torch.testing.assert_close(found, weight.detach(), rtol=1e-4, atol=1e-4)
