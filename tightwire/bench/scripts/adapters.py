"""LoRA by hand: a frozen model, and low-rank adapters that train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW

from tightwire.bench.scripts.replicas import Replicas


class Adapted(nn.Module):
    """A frozen layer and B·A beside it, of rank 2."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(0.1 * torch.randn(2, layer.in_features))
        self.b = nn.Parameter(torch.zeros(layer.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the adapter says."""
        out: Tensor = self.layer(x) + x @ self.a.T @ self.b.T
        return out


def lora(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains the adapters."""
    model = nn.Sequential(Adapted(nn.Linear(6, 12)), nn.GELU(), Adapted(nn.Linear(12, 4)))
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with replicas.of(model, optimizer) as net:
        for batch in replicas.batches(8, 10):
            loss = mse_loss(net(batch[:, :6]), batch[:, 6:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, loss
