"""Integers of a shared step on CUDA; `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.reference import fixed
from tightwire.kernels.triton import _fixed
from tightwire.kernels.triton import _parts as parts


def largest_bits(x: Tensor) -> int:
    """Returns the bits of the largest magnitude of float32 `x`; infinity's and a NaN's are larger than all others."""
    return fixed.largest_bits(x)  # two operations of torch; its value is needed on the host in any case


def encode_fixed(x: Tensor, codes: Tensor, step: float, levels: int, stochastic: bool, seed: int) -> None:
    """Writes float32 `x` as int8 or int32 multiples of `step`, ±`levels` at most; `x` keeps the difference."""
    numbers = (float(step), float(1 / step), float(levels))
    keys = parts.keys(seed)
    parts.launch_by_tile(_fixed.encode, x, codes, x.numel(), *numbers, *keys, STOCHASTIC=stochastic)


def decode_fixed(sums: Tensor, out: Tensor, step: float) -> None:
    """Writes int16 or int32 multiples of `step` to float32 `out`."""
    parts.launch_by_tile(_fixed.decode, out, sums, out.numel(), float(step))
