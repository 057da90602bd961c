"""The calls of sparse kernels on processors; `reference_sparse` says what they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightwire.kernels import scratch
from tightwire.kernels.cpu import blocks, cosines, draws, marks, sparse, tables
from tightwire.kernels.keys import keys_of
from tightwire.kernels.odds import NUM_BINS, ONE, SHIFT, scale_of

_UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASKS = {2: np.uint16(0x7FFF), 4: np.uint32(0x7FFFFFFF), 8: np.uint64(0x7FFFFFFFFFFFFFFF)}
_FRACTION_BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10, torch.float64: 52}
# An eighth of the distance to twice a float32, in its bits.
_EIGHTH = np.uint32(1 << (_FRACTION_BITS[torch.float32] - 3))
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def _bits(x: Tensor) -> tuple[Any, Any]:
    """Returns the unsigned bits of `x`, and all of them but the sign."""
    itemsize = x.element_size()
    return x.view(_INTEGERS[itemsize]).numpy().view(_UNSIGNED[itemsize]), _MASKS[itemsize]


def select_above(x: Tensor, message: Tensor, k: int, threshold: float) -> None:
    """Moves the magnitudes of at least `threshold`, or the k largest if those are fewer, to the message."""
    bits, mask = _bits(x)
    low, _ = _bits(torch.tensor([threshold], dtype=torch.float64).to(x.dtype))
    blocks.select_above(bits, mask, max(low[0], low.dtype.type(1)), k, message.numpy())


def put(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds a message of at most k elements; False, with nothing done, if it cannot be valid."""
    payload = message.numpy()
    count = blocks.counted(payload, k, out.numel())
    if count < 0:
        return False
    _scatter(payload[4 : 4 + 4 * count], message[4 + 4 * k :][: count * out.element_size()], out, add)
    return True


def _scatter(indices: Any, values: Tensor, out: Tensor, add: bool) -> None:
    """Writes or adds values at indices, which are the bytes of int32."""
    count = indices.size // 4
    if out.dtype in _NUMPY:
        sparse.scatter(indices, values.numpy().view(_NUMPY[out.dtype]), out.numpy(), count, add)
        return
    at, halves = torch.from_numpy(indices.view(np.int32).astype(np.int64)), values.clone().view(out.dtype)
    if add:
        out.index_add_(0, at, halves)
    else:
        out.zero_().index_copy_(0, at, halves)


def select_blocks(x: Tensor, message: Tensor, block: int, kept: tuple[int, int]) -> None:
    """Moves the largest magnitudes of every block to the message."""
    bits, mask = _bits(x)
    step = mask.dtype.type(1 << (_FRACTION_BITS[x.dtype] - 3))
    blocks.select_blocks(bits, mask, step, block, kept, message.numpy())


def put_blocks(message: Tensor, out: Tensor, block: int, kept: tuple[int, int], add: bool) -> bool:
    """Writes or adds a message of blocks; False, with nothing done, if an index is wrong."""
    total = out.numel() // block * kept[0] + kept[1]
    flat = scratch("places", total, torch.int32).numpy()
    if not blocks.flat_indices(message.numpy(), out.numel(), block, kept, flat):
        return False
    _scatter(flat.view(np.uint8), message[2 * total :], out, add)
    return True


def mark(x: Tensor, found: Tensor, k: int, magnitude: float, message: Tensor) -> None:
    """Writes ± a magnitude at the positions found; float32 `x` keeps the rest."""
    payload = found.numpy()
    count = found.numel() // 8
    indices, values = payload[: 4 * count].view(np.int32), payload[4 * count :].view(np.float32)
    marks.mark(x.numpy(), indices[:k], values[:k], np.float32(magnitude), message.numpy())


def unmark(message: Tensor, count: int, magnitude: float, out: Tensor, add: bool) -> bool:
    """Writes or adds ± a magnitude at marked positions; False, with nothing done, if these cannot be."""
    entries = message.numpy().view(np.uint32)[:count]
    return bool(marks.unmark(entries, np.float32(magnitude), out.numpy(), add))


def mean_magnitude(values: Tensor) -> float:
    """Returns the mean magnitude of float32 bytes, as a float32; 0 of none, NaN if one is not finite."""
    return float(marks.mean_magnitude(values.numpy().view(np.float32)))


def lean(x: Tensor, found: Tensor) -> tuple[int, float]:
    """Finds the largest elements of one sign in float32 `x`."""
    bits, _ = _bits(x)
    payload = found.numpy()
    split = payload.size // 2
    count, mean = marks.lean(
        bits, split // 4, payload[:split].view(np.int32), payload[split:].view(np.uint32)
    )
    return int(count), float(mean)


def places(numel: int, seed: int, out: Tensor) -> None:
    """Writes ascending places below `numel`, one drawn from each of as many stretches as int64 `out` has places."""
    draws.places(numel, _keys(seed), out.numpy())


def draw(x: Tensor, message: Tensor, k: int, seed: int) -> None:
    """Moves elements of finite float32 `x`, drawn by their magnitude, to the message."""
    counts = np.zeros((2, NUM_BINS), np.int64)
    draws.histogram(x.numpy().view(np.uint32), np.uint32(SHIFT), counts)
    start = keys_of(seed)[0] % ONE
    draws.draw(x.numpy(), scale_of(counts.sum(0), k), start, ONE, message.numpy())


def transform(x: Tensor, forward: Tensor, largest: float, limit: float, coefficients: Tensor) -> None:
    """Writes the coefficients of every chunk of float32 `x`."""
    bounds = np.float32(largest), np.float32(limit)
    cosines.transform(x.numpy(), forward.numpy(), *bounds, coefficients.numpy())


def untransform(message: Tensor, out: Tensor, backward: Tensor, kept: int, how: int) -> bool:
    """Writes, adds or subtracts the waves of a message; False, with nothing done, if an index is wrong."""
    chunk = backward.shape[0]
    total = -(-out.numel() // chunk) * kept
    payload = message.numpy()
    indices, values = payload[: 2 * total].view(np.uint16), payload[2 * total :].view(np.float32)
    if not cosines.ascend(indices, kept, chunk):
        return False
    cosines.untransform(indices, values, backward.numpy(), kept, out.numpy(), how)
    return True


def strongest(
    x: Tensor, waves: tuple[Tensor, Tensor], bounds: tuple[float, float], kept: int, message: Tensor
) -> None:
    """Moves the strongest waves of every chunk of float32 `x` to the message."""
    forward, backward = waves
    limits = np.float32(bounds[0]), np.float32(bounds[1])
    matrices = forward.numpy(), backward.numpy()
    cosines.strongest(x.numpy(), matrices, limits, kept, _EIGHTH, message.numpy())


def sketch(x: Tensor, table: Tensor, seed: int) -> None:
    """Adds float32 `x` to a table."""
    tables.sketch(x.numpy(), table.numpy(), _keys(seed))


def unsketch(table: Tensor, out: Tensor, seed: int) -> None:
    """Writes the estimate of every element to float32 `out`."""
    tables.unsketch(table.numpy(), out.numpy(), _keys(seed))


def _keys(seed: int) -> tuple[Any, Any]:
    key, second_key = keys_of(seed)
    return np.uint32(key), np.uint32(second_key)
