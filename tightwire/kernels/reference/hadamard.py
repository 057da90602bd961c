"""Random rotations: Hadamard transforms between random signs."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.reference._random import random_bits
from tightwire.kernels.reference._rows import block_rows

_WORD = 32


def rotate(x: Tensor, block: int, seed: int, back: bool) -> None:
    """Rotates every block of float32 `x` in place: x ← HD₂HD₁x/d, or with `back` what undoes it.

    H is the Hadamard matrix of a block's size d, D are random signs. Both are symmetric or diagonal and H² = d, so that
    going back is the same in the other order. After one turn a vector of few elements still has few magnitudes; after
    two its elements are as good as normal.

    Args:
        x: flat; whole blocks, and one at the end whose size is a smaller power of two, at least 32.
        block: a power of two, at least 32.
        seed: of the signs, which differ from block to block.
        back: whether to undo.
    """
    first_signs, second_signs = (_signs(x.numel(), seed + turn, x.device) for turn in (0, 1))
    for first, rows in block_rows(x, block):
        here = slice(first, first + rows.numel())
        inner, outer = first_signs[here].view_as(rows), second_signs[here].view_as(rows)
        y = rows * (1.0 / rows.shape[1])
        if back:
            y = _transform(_transform(y) * outer) * inner
        else:
            y = _transform(_transform(y * inner) * outer)
        rows.copy_(y)


def _signs(numel: int, seed: int, device: torch.device) -> Tensor:
    """Returns 1 or −1 for each element: a bit of 32 that are drawn together."""
    words = random_bits(0, -(-numel // _WORD), seed, device)
    bits = words[:, None] >> torch.arange(_WORD, device=device) & 1
    return (1 - 2 * bits).float().view(-1)[:numel]


def _transform(rows: Tensor) -> Tensor:
    """Returns H times each row: sums and differences of halves, then of quarters, and so on."""
    count, half = rows.shape[0], rows.shape[1] // 2
    while half:
        pairs = rows.view(count, -1, 2, half)
        rows = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2)
        half //= 2
    return rows.reshape(count, -1)
