"""Integers of a shared step on processors. `reference` says what the calls do."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tightwire.kernels.cpu import _fixed
from tightwire.kernels.cpu._arrays import numpy_keys


def largest_bits(x: Tensor) -> int:
    """Returns the bits of the largest magnitude of float32 `x`; infinity's and a NaN's are larger than all others."""
    return int(_fixed.largest_bits(x.numpy().view(np.uint32)))


def encode_fixed(x: Tensor, codes: Tensor, step: float, levels: int, stochastic: bool, seed: int) -> None:
    """Writes float32 `x` as int8 or int32 multiples of `step`, ±`levels` at most; `x` keeps the difference."""
    inverse, own_step, top = np.float32(1 / step), np.float32(step), np.float32(levels)
    if stochastic:
        _fixed.encode_stochastic(x.numpy(), codes.numpy(), own_step, inverse, top, numpy_keys(seed))
    else:
        _fixed.encode_nearest(x.numpy(), codes.numpy(), own_step, inverse, top)


def decode_fixed(sums: Tensor, out: Tensor, step: float) -> None:
    """Writes int16 or int32 multiples of `step` to float32 `out`."""
    _fixed.decode(sums.numpy(), out.numpy(), np.float32(step))
