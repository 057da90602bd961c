"""A byte-level transformer, small enough to train on a laptop and real enough to show what a plan does to learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm causal self-attention and a feed-forward layer of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (sequences, length, width) to the same shape."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        fed: Tensor = self.down(functional.gelu(self.up(self.norm_feed(x))))
        return x + fed


class ByteTransformer(nn.Module):
    """Predicts the next byte of a text; 4.9 million parameters by default."""

    def __init__(self, *, width: int = 256, layers: int = 6, heads: int = 4, length: int = 64) -> None:
        super().__init__()
        self.length = length
        self.embedding, self.position = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, passages: Tensor) -> Tensor:
        """Returns the mean cross-entropy, in nats per byte, over (sequences, length + 1) passages of bytes."""
        logits = self.logits(passages[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), passages[:, 1:].flatten())

    def logits(self, text: Tensor) -> Tensor:
        """Maps (sequences, length) bytes to (sequences, length, 256) logits of the byte after each."""
        positions = torch.arange(text.shape[1], device=text.device)
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(text) + self.position(positions))))
        return logits
