"""Rounding to a grid on CUDA; `reference` says what the calls do."""

from __future__ import annotations

import math
from typing import Any

import triton
from torch import Tensor

from tightwire.kernels.formats import Grid
from tightwire.kernels.reference import uniform as reference
from tightwire.kernels.triton import _parts as parts
from tightwire.kernels.triton import _uniform


def quantise(x: Tensor, message: Tensor, grid: Grid, seed: int) -> None:
    """Writes the `grid` message of float32 `x`; `x` keeps the difference."""
    if grid.block > parts.LARGEST_BLOCK:
        return reference.quantise(x, message, grid, seed)
    programs, shape = parts.rows(x.numel(), grid.block)
    last = x.numel() % grid.block or grid.block
    parts.launch(
        _uniform.quantise,
        programs,
        x,
        message,
        x.numel(),
        *parts.keys(seed),
        grid.clip / math.sqrt(grid.block),
        grid.clip / math.sqrt(last),
        **shape,
        **_codes(grid),
        L2=grid.norm == "l2",
        CLIP=grid.clip > 0,
        STOCHASTIC=grid.stochastic,
    )


def _codes(grid: Grid) -> dict[str, Any]:
    width = triton.next_power_of_2(grid.block * grid.bits // 8)
    return {"BITS": grid.bits, "BYTES": width, "LEVELS": grid.levels, "DOUBLING": grid.doubling}


def dequantise(message: Tensor, out: Tensor, grid: Grid, add: bool) -> None:
    """Writes or adds a `grid` message to float32 `out`."""
    if grid.block > parts.LARGEST_BLOCK:
        return reference.dequantise(message, out, grid, add)
    programs, shape = parts.rows(out.numel(), grid.block)
    parts.launch(_uniform.dequantise, programs, out, message, out.numel(), **shape, **_codes(grid), ADD=add)
