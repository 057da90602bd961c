"""LBFGS, which computes losses and gradients within its step."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import LBFGS

from tightwire.bench.scripts.replicas import Replicas


def lbfgs(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains a regression by it."""
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=3)
    with replicas.of(model, optimizer) as net:
        for batch in replicas.batches(16, 6):

            def closure(batch: Tensor = batch) -> Tensor:
                optimizer.zero_grad()
                loss = mse_loss(net(batch[:, :5]), batch[:, 5:])
                loss.backward()
                return loss

            loss: Tensor = optimizer.step(closure)
    return model, loss
