"""Integers of one step that several workers share, so that they may be added as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.reference._random import random_unit


def largest_bits(x: Tensor) -> int:
    """Returns the bits of the largest magnitude of float32 `x`; infinity's and a NaN's are larger than all others."""
    return int(x.view(torch.int32).bitwise_and(0x7FFFFFFF).max())


def encode_fixed(x: Tensor, codes: Tensor, step: float, levels: int, stochastic: bool, seed: int) -> None:
    """Writes float32 `x` as int8 or int32 multiples of `step`, ±`levels` at most; `x` keeps the difference."""
    y = x * (1 / step)
    rounded = (y + random_unit(0, x.numel(), seed, x.device)).floor() if stochastic else y.round()
    rounded = rounded.clamp(-levels, levels)
    codes.copy_(rounded)
    x.sub_(rounded * step)


def decode_fixed(sums: Tensor, out: Tensor, step: float) -> None:
    """Writes int16 or int32 multiples of `step` to float32 `out`."""
    out.copy_(sums).mul_(step)
