"""A GAN: two models, each with its optimizer; the discriminator takes two passes per step, and one that is dropped."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as judge
from torch.optim import Adam

from tightwire.bench.scripts.replicas import Replicas


def gan(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains both."""
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))
    critic = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    makes, judges = Adam(generator.parameters(), 1e-2), Adam(critic.parameters(), 1e-2)
    ones, zeros = torch.ones(8, 1), torch.zeros(8, 1)
    with replicas.of(generator, makes) as make, replicas.of(critic, judges) as discriminate:
        for batch in replicas.batches(8, 10):
            real, noise = batch.split([6, 4], dim=1)
            fake = make(noise)
            judges.zero_grad()
            judge(discriminate(real), ones).backward()
            judge(discriminate(fake.detach()), zeros).backward()
            judges.step()
            makes.zero_grad()
            loss = judge(discriminate(fake), ones)
            loss.backward()  # the critic's gradients are dropped by its next zero_grad()
            makes.step()
    return nn.ModuleList([generator, critic]), loss
