"""Count-sketches."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.reference._random import random_bits

LANES = 16


def add_to_sketch(x: Tensor, table: Tensor, seed: int) -> None:
    """Adds float32 `x` to a table of (rows, 16·width): groups of 16 neighbours, each element by a sign, at a place."""
    rows, width = table.shape[0], table.shape[1] // LANES
    for row in range(rows):
        spots, turns = _hashes(x.numel(), row, rows, width, seed, x.device)
        padded = torch.nn.functional.pad(x, (0, turns.numel() - x.numel())).view(-1, LANES)
        table[row].view(width, LANES).index_add_(0, spots, padded * turns)


def estimate_from_sketch(table: Tensor, out: Tensor, seed: int) -> None:
    """Writes the estimate of every element to float32 `out`: the median over the rows of a table."""
    rows, width = table.shape[0], table.shape[1] // LANES
    seen = []
    for row in range(rows):
        spots, turns = _hashes(out.numel(), row, rows, width, seed, out.device)
        seen.append((table[row].view(width, LANES)[spots] * turns).flatten()[: out.numel()])
    out.copy_(torch.stack(seen).median(0).values)


def _hashes(
    numel: int, row: int, rows: int, width: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns the place of every group in a row, and the sign of every element."""
    num_groups = -(-numel // LANES)
    drawn = random_bits(0, 2 * num_groups * rows, seed, device).view(num_groups, rows, 2)[:, row]
    bits = drawn[:, 1:] >> torch.arange(LANES, device=device)
    return (drawn[:, 0] * width) >> 32, (1 - 2 * (bits & 1)).float()
