"""Muon for matrices and AdamW for all else: a step is over when both have stepped."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW, Muon

from tightwire.bench.scripts.replicas import Replicas


def muon(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains a regression by them."""
    model = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 4))
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizers = [Muon(matrices, lr=0.02), AdamW(others, lr=1e-2)]
    with replicas.of(model, optimizers) as net:
        for batch in replicas.batches(8, 10):
            loss = mse_loss(net(batch[:, :6]), batch[:, 6:])
            model.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    return model, loss
