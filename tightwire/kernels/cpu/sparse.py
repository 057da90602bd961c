"""The largest magnitudes on processors. `reference` says what the calls do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightwire.kernels.cpu import _sparse
from tightwire.kernels.cpu._arrays import magnitude_mask, unsigned_bits

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def select_largest(x: Tensor, message: Tensor, k: int) -> None:
    """Moves the k elements of largest magnitude, of any float dtype, from `x` to the message."""
    _sparse.select_largest(unsigned_bits(x), magnitude_mask(x), k, message.numpy())


def scatter_largest(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds the k values of a message to `out`; False, with nothing done, if an index is wrong."""
    payload = message.numpy()
    if not _sparse.in_range(payload, k, out.numel()):
        return False
    scatter_at(payload[: 4 * k], message[4 * k :], out, add)
    return True


def select_above(x: Tensor, message: Tensor, k: int, threshold: float) -> None:
    """Moves the magnitudes of at least `threshold`, or the k largest if those are fewer, to the message."""
    low = unsigned_bits(torch.tensor([threshold], dtype=torch.float64).to(x.dtype))
    smallest = max(low[0], low.dtype.type(1))
    _sparse.select_above(unsigned_bits(x), magnitude_mask(x), smallest, k, message.numpy())


def scatter_sparse(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds a message of at most k elements; False, with nothing done, if it cannot be valid."""
    payload = message.numpy()
    count = _sparse.counted(payload, k, out.numel())
    if count < 0:
        return False
    scatter_at(payload[4 : 4 + 4 * count], message[4 + 4 * k :][: count * out.element_size()], out, add)
    return True


def scatter_at(indices: Any, values: Tensor, out: Tensor, add: bool) -> None:
    """Writes or adds values at indices, which are the bytes of int32."""
    count = indices.size // 4
    if out.dtype in _NUMPY:
        _sparse.scatter(indices, values.numpy().view(_NUMPY[out.dtype]), out.numpy(), count, add)
        return
    at, halves = torch.from_numpy(indices.view(np.int32).astype(np.int64)), values.clone().view(out.dtype)
    if add:
        out.index_add_(0, at, halves)
    else:
        out.zero_().index_copy_(0, at, halves)
