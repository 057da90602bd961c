"""A small transformer over characters: tied embeddings, weight decay in groups, a schedule of the rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from tightwire.bench.scripts.replicas import STEPS, Replicas

CHARACTERS, WIDTH, LENGTH = 24, 16, 8


class CharacterModel(nn.Module):
    """Two causal blocks; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CHARACTERS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, text: Tensor) -> Tensor:
        """Returns logits of the next characters."""
        x = self.embed(text) + self.place(torch.arange(text.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        out: Tensor = self.head(self.blocks(x, mask=mask, is_causal=True))
        return out


def char_transformer(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains it."""
    model = CharacterModel()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=1e-2)
    scheduler = CosineAnnealingLR(optimizer, STEPS)
    with replicas.of(model, optimizer) as net:
        for text in replicas.tokens(CHARACTERS, 4, LENGTH + 1):
            loss = cross_entropy(net(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
    return model, loss
