"""A variational autoencoder: noise within the model, two losses in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Adam

from tightwire.bench.scripts.replicas import Replicas


class AutoEncoder(nn.Module):
    """Returns what it makes of its input, and mean and log-variance of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(10, 6), nn.Linear(3, 10)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes, draws with the noise given, and decodes."""
        mean, log_variance = self.encode(x).chunk(2, dim=-1)
        return self.decode(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


def vae(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains it."""
    model = AutoEncoder()
    optimizer = Adam(model.parameters(), 1e-2)
    with replicas.of(model, optimizer) as net:
        for batch in replicas.batches(8, 13):
            x, noise = batch.split([10, 3], dim=1)
            made, mean, log_variance = net(torch.sigmoid(x), noise)
            kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
            loss = mse_loss(made, torch.sigmoid(x)) + 1e-3 * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, loss
