"""SAM: a first pass on this worker alone leads uphill, the second one is made there and counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD

from tightwire.bench.scripts.replicas import Replicas

RHO = 0.05


def sam(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains a regression by it; what moved is put back as it was, to the bit."""
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    with replicas.of(model, optimizer) as net:
        for batch in replicas.batches(8, 10):
            optimizer.zero_grad()
            with replicas.accumulate():
                mse_loss(net(batch[:, :6]), batch[:, 6:]).backward()
            before = [p.detach().clone() for p in model.parameters()]
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            scale = RHO / (nn.utils.get_total_norm(gradients) + 1e-12)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(p.grad * scale if p.grad is not None else 0.0)
            optimizer.zero_grad()
            loss = mse_loss(net(batch[:, :6]), batch[:, 6:])
            loss.backward()
            with torch.no_grad():
                for p, old in zip(model.parameters(), before, strict=True):
                    p.copy_(old)
            optimizer.step()
    return model, loss
