"""Rounding to a grid per block."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightwire.kernels.formats import Grid
from tightwire.kernels.reference._random import random_bits, random_unit
from tightwire.kernels.reference._rows import (
    CEILING,
    FLOOR,
    MAGNITUDE,
    block_rows,
    fold_sum,
    join_parts,
    pack_codes,
    read_as,
    split_parts,
    unpack_codes,
    write_or_add,
)


def quantise(x: Tensor, message: Tensor, grid: Grid, seed: int) -> None:
    """Writes the `grid` message of float32 `x`; `x` keeps the difference."""
    parts = [_quantise_blocks(blocks, grid, seed, first) for first, blocks in block_rows(x, grid.block)]
    join_parts([(step, pack_codes(codes, grid.bits)) for step, codes in parts], message)


def _quantise_blocks(x: Tensor, grid: Grid, seed: int, first: int) -> tuple[Tensor, Tensor]:
    largest = x.abs().amax(1, keepdim=True)
    scale = _euclidean_norm(x, largest) if grid.norm == "l2" else largest
    if grid.clip > 0:
        scale = torch.minimum(scale, grid.clip / math.sqrt(x.shape[1]) * _euclidean_norm(x, largest))
    scale = scale.clamp(max=CEILING)
    sent = largest >= FLOOR
    zero = torch.zeros_like(scale)
    levels = 1 if grid.doubling else grid.levels
    step = torch.where(sent, scale / levels, zero)
    inverse = torch.where(sent, torch.full_like(scale, levels) / scale, zero)
    if grid.doubling:
        rounded = _doubling_codes(x * inverse, grid.levels, random_bits(first, x.numel(), seed, x.device))
    elif grid.stochastic:
        rounded = (x * inverse + random_unit(first, x.numel(), seed, x.device).view_as(x)).floor()
    else:
        rounded = (x * inverse).round()
    rounded = rounded.clamp(-grid.levels, grid.levels)
    finite = largest.isfinite()
    step = torch.where(finite, step, torch.nan)
    rounded = torch.where(finite, rounded, 0.0)
    x.sub_((_doubling_values(rounded, grid.levels) if grid.doubling else rounded) * step)
    return step, (rounded + grid.levels).to(torch.uint8)


def _doubling_codes(y: Tensor, levels: int, random: Tensor) -> Tensor:
    """Rounds |y| ≤ 1 to levels that double, stochastically: 0, and 2**(l − levels) for l from 1 to `levels`."""
    magnitude, random = y.view(torch.int32).long() & MAGNITUDE, random.view_as(y)
    above = magnitude - ((127 - levels) << 23)
    below = (y.abs() * 2.0 ** (levels - 1) * 2.0**23).long()
    exact = torch.where(magnitude >= (128 - levels) << 23, above, below)
    level = ((exact + (random >> 9)) >> 23).clamp(max=levels)
    return torch.where(y.signbit(), -level, level).float()


def _doubling_values(codes: Tensor, levels: int) -> Tensor:
    level = codes.abs().int()
    values = torch.where(level > 0, (level + (127 - levels)) << 23, 0).to(torch.int32).view(torch.float32)
    return torch.where(codes < 0, -values, values)


def _euclidean_norm(x: Tensor, largest: Tensor) -> Tensor:
    """Returns the norm of each row, summed by folding halves."""
    folded = fold_sum((x * (1 / largest)).square())
    return (largest.double() * folded.double().sqrt()).float()


def dequantise(message: Tensor, out: Tensor, grid: Grid, add: bool) -> None:
    """Writes or adds a `grid` message to float32 `out`."""
    for blocks, steps, packed in split_parts(message, out, grid.block, 4, grid.bits):
        codes = unpack_codes(packed, grid.bits)[:, : blocks.shape[1]]
        values = codes.float() - grid.levels
        if grid.doubling:
            values = _doubling_values(values, grid.levels)
        write_or_add(values * read_as(steps, torch.float32)[:, None], blocks, add)
