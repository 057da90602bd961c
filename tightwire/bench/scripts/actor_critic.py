"""An actor and a critic on one trunk: every worker plays episodes of its own, of its own length."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import RMSprop

from tightwire.bench.scripts.replicas import Replicas


class Player(nn.Module):
    """Returns logits of two actions, and the value of a state."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.actor, self.critic = nn.Linear(4, 16), nn.Linear(16, 2), nn.Linear(16, 1)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Looks at states, (steps, 4)."""
        hidden = torch.tanh(self.trunk(state))
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


def actor_critic(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains it."""
    model = Player()
    optimizer = RMSprop(model.parameters(), 1e-3)
    with replicas.of(model, optimizer) as net:
        for states in replicas.batches(12 - 4 * (replicas.rank % 2), 4):
            logits, values = net(states)
            policy = torch.distributions.Categorical(logits=logits)
            actions = (states[:, 0] > 0).long()
            advantage = states[:, 1].cumsum(0).flip(0) - values
            gain = policy.log_prob(actions) * advantage.detach()
            loss = -gain.mean() + advantage.square().mean() - 0.01 * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, loss
