"""A graph network: every worker has a graph of its own, of its own size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam

from tightwire.bench.scripts.replicas import Replicas


class GraphNet(nn.Module):
    """Two layers that mix neighbours by a normalised adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        """Returns logits of each node's class."""
        out: Tensor = self.second(adjacency @ torch.relu(self.first(adjacency @ nodes)))
        return out


def graph_net(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains it."""
    model = GraphNet()
    optimizer = Adam(model.parameters(), 1e-2, weight_decay=5e-4)
    with replicas.of(model, optimizer) as net:
        for nodes in replicas.batches(10 + replicas.rank % 3, 5):
            edges = (nodes @ nodes.T > 0).float() + torch.eye(len(nodes))
            degrees = edges.sum(1).rsqrt()
            loss = cross_entropy(net(nodes, degrees[:, None] * edges * degrees), nodes[:, :3].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, loss
