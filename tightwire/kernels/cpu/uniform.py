"""Rounding to a grid on processors. `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.cpu import _uniform
from tightwire.kernels.cpu._arrays import numpy_keys
from tightwire.kernels.formats import Grid


def quantise(x: Tensor, message: Tensor, grid: Grid, seed: int) -> None:
    """Writes the `grid` message of float32 `x`; `x` keeps the difference."""
    _uniform.quantise(
        x.numpy(),
        message.numpy(),
        grid.block,
        grid.bits,
        grid.levels,
        grid.norm == "l2",
        grid.clip,
        grid.stochastic,
        grid.doubling,
        numpy_keys(seed),
    )


def dequantise(message: Tensor, out: Tensor, grid: Grid, add: bool) -> None:
    """Writes or adds a `grid` message to float32 `out`."""
    _uniform.dequantise(message.numpy(), out.numpy(), grid.block, grid.bits, grid.levels, grid.doubling, add)
