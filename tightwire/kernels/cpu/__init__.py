"""Kernels for processors: numba loops over flat memory, compiled once per machine and cached on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightwire.kernels.cpu import casts, sparse, uniform
from tightwire.kernels.grid import Grid
from tightwire.kernels.keys import keys_of

_NARROW = {torch.float16: casts.narrow_float16, torch.bfloat16: casts.narrow_bfloat16}
_WIDEN = {torch.float16: casts.widen_float16, torch.bfloat16: casts.widen_bfloat16}
_UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASKS = {2: np.uint16(0x7FFF), 4: np.uint32(0x7FFFFFFF), 8: np.uint64(0x7FFFFFFFFFFFFFFF)}


def narrow(x: Tensor, message: Tensor, half: torch.dtype) -> None:
    """Writes float32 `x` as `half`, saturating what is finite; `x` keeps the difference."""
    _NARROW[half](x.numpy(), message.numpy())


def widen(message: Tensor, out: Tensor, half: torch.dtype, add: bool) -> None:
    """Writes or adds the `half` values of a message to float32 `out`."""
    _WIDEN[half](message.numpy(), out.numpy(), add)


def quantise(x: Tensor, message: Tensor, grid: Grid, seed: int) -> None:
    """Writes the `grid` message of float32 `x`; `x` keeps the difference."""
    keys = keys_of(seed)
    uniform.quantise(
        x.numpy(),
        message.numpy(),
        grid.block,
        grid.bits,
        grid.levels,
        grid.norm == "l2",
        grid.clip,
        grid.stochastic,
        (np.uint32(keys[0]), np.uint32(keys[1])),
    )


def dequantise(message: Tensor, out: Tensor, grid: Grid, add: bool) -> None:
    """Writes or adds a `grid` message to float32 `out`."""
    uniform.dequantise(message.numpy(), out.numpy(), grid.block, grid.bits, grid.levels, add)


def select(x: Tensor, message: Tensor, k: int) -> None:
    """Moves the k elements of largest magnitude, of any float dtype, from `x` to the message."""
    itemsize = x.element_size()
    bits = x.view(_INTEGERS[itemsize]).numpy().view(_UNSIGNED[itemsize])
    sparse.select(bits, _MASKS[itemsize], k, message.numpy())


def scatter(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds the k values of a message to `out`; False, with nothing done, if an index is wrong."""
    payload = message.numpy()
    if not sparse.in_range(payload, k, out.numel()):
        return False
    if out.dtype in (torch.float32, torch.float64):
        kind = np.float32 if out.dtype == torch.float32 else np.float64
        sparse.scatter(payload, payload[4 * k :].view(kind), out.numpy(), k, add)
    else:
        _scatter_half(message, out, k, add)
    return True


def _scatter_half(message: Tensor, out: Tensor, k: int, add: bool) -> None:
    indices = message[: 4 * k].clone().view(torch.int32)
    values = message[4 * k :].clone().view(out.dtype)
    if add:
        out.index_add_(0, indices, values)
    else:
        out.zero_().index_copy_(0, indices.long(), values)


def compile_all() -> None:
    """Runs every loop once on a few elements, which compiles it or loads it from the cache."""
    x, message = torch.ones(8), torch.empty(64, dtype=torch.uint8)
    for half in (torch.float16, torch.bfloat16):
        narrow(x, message[:16], half)
        widen(message[:16], x, half, False)
    grid = Grid(block=8, bits=8, levels=127)
    quantise(x, message[: grid.wire_bytes(8)], grid, 0)
    dequantise(message[: grid.wire_bytes(8)], x, grid, False)
    select(x, message[:8], 1)
    scatter(message[:8], x, 1, False)
