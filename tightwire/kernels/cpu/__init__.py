"""Kernels for processors: numba loops over flat memory, compiled once per machine and cached on disk."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightwire.kernels.cpu import casts, floats, planes, signs, sparse, uniform, votes
from tightwire.kernels.cpu.sparsely import (  # noqa: F401
    draw,
    lean,
    mark,
    mean_magnitude,
    places,
    put,
    put_blocks,
    select_above,
    select_blocks,
    sketch,
    strongest,
    transform,
    unmark,
    unsketch,
    untransform,
)
from tightwire.kernels.grid import Eight, Grid
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
    uniform.quantise(
        x.numpy(),
        message.numpy(),
        grid.block,
        grid.bits,
        grid.levels,
        grid.norm == "l2",
        grid.clip,
        grid.stochastic,
        grid.doubling,
        _keys(seed),
    )


def dequantise(message: Tensor, out: Tensor, grid: Grid, add: bool) -> None:
    """Writes or adds a `grid` message to float32 `out`."""
    uniform.dequantise(message.numpy(), out.numpy(), grid.block, grid.bits, grid.levels, grid.doubling, add)


def sign(x: Tensor, message: Tensor, block: int, two_sided: bool) -> None:
    """Writes the sign bits of float32 `x`, and per block the mean of |x|, or of each sign; `x` keeps the rest."""
    signs.signs(x.numpy(), message.numpy(), block, two_sided)


def unsign(message: Tensor, out: Tensor, block: int, two_sided: bool, add: bool) -> None:
    """Writes or adds a message of signs to float32 `out`."""
    signs.unsign(message.numpy(), out.numpy(), block, two_sided, add)


def cast(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes the signs of float32 `x` as votes, random where it is zero; `x` stays as it is."""
    votes.cast(x.numpy(), message.numpy(), block, _keys(seed))


def tally(messages: Tensor, outcome: Tensor, numel: int, block: int, seed: int) -> None:
    """Writes the message of the majority of (voters, bytes) messages of `numel` elements, random where they tie."""
    votes.tally(messages.numpy(), outcome.numpy(), numel, block, _keys(seed))


def uncast(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds the signs of a message of votes to float32 `out`."""
    votes.uncast(message.numpy(), out.numpy(), block, add)


def split_planes(bits: Tensor, message: Tensor) -> None:
    """Writes the bytes of integers by their place in them, the lowest ones of all first."""
    planes.split(bits.numpy().view(_UNSIGNED[bits.element_size()]), message.numpy())


def join_planes(message: Tensor, bits: Tensor) -> None:
    """Writes the integers whose bytes `split_planes` wrote."""
    planes.join(message.numpy(), bits.numpy().view(_UNSIGNED[bits.element_size()]))


def power(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes float32 `x` rounded to powers of two, stochastically; `x` keeps the difference."""
    floats.powers(x.numpy(), message.numpy(), block, _keys(seed))


def unpower(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds a message of powers of two to float32 `out`."""
    floats.unpowers(message.numpy(), out.numpy(), block, add)


def eight(x: Tensor, message: Tensor, block: int, form: Eight) -> None:
    """Writes float32 `x` in an 8-bit float format, scaled per block; `x` keeps the difference."""
    floats.eight(x.numpy(), message.numpy(), block, form.top, form.mantissa, form.bias)


def uneight(message: Tensor, out: Tensor, block: int, form: Eight, add: bool) -> None:
    """Writes or adds a message of 8-bit floats to float32 `out`."""
    floats.uneight(message.numpy(), out.numpy(), block, _values(form), add)


@functools.cache
def _values(form: Eight) -> Any:
    """Returns the float32 that each byte stands for."""
    return torch.arange(256, dtype=torch.uint8).view(getattr(torch, form.torch_name)).float().numpy()


def _keys(seed: int) -> tuple[Any, Any]:
    key, second_key = keys_of(seed)
    return np.uint32(key), np.uint32(second_key)


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
