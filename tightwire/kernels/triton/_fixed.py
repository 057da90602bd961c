"""Kernels between floats and integers of a shared step."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import random_bits


@triton.jit
def rounded_even(y: tl.tensor) -> tl.tensor:
    """Returns the nearest integers, ties to even, as floats; from 2**23 on a float32 is an integer."""
    base = tl.where(y < 0, -8388608.0, 8388608.0)
    return tl.where(tl.abs(y) >= 8388608.0, y, (y + base) - base)


@triton.jit(do_not_specialize=["step", "inverse", "levels", "key", "second_key"])
def encode(
    x: tl.tensor,
    codes: tl.tensor,
    numel: tl.tensor,
    step: tl.tensor,
    inverse: tl.tensor,
    levels: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    STOCHASTIC: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Writes multiples of `step`; `x` keeps the difference."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = i < numel
    exact = tl.load(x + i, mask=inside, other=0.0)
    scaled = exact * inverse
    if STOCHASTIC:
        random = (random_bits(i, key, second_key) >> 8).to(tl.int32).to(tl.float32)
        raised = scaled + random * (2.0**-24)
        rounded = rounded_even(raised)
        rounded -= (rounded > raised).to(tl.float32)
    else:
        rounded = rounded_even(scaled)
    rounded = tl.minimum(tl.maximum(rounded, -levels), levels)
    tl.store(codes + i, rounded.to(tl.int32), mask=inside)
    tl.store(x + i, exact - rounded * step, mask=inside)


@triton.jit(do_not_specialize=["step"])
def decode(out: tl.tensor, sums: tl.tensor, numel: tl.tensor, step: tl.tensor, TILE: tl.constexpr) -> None:
    """Writes multiples of `step`."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = i < numel
    tl.store(out + i, tl.load(sums + i, mask=inside, other=0).to(tl.float32) * step, mask=inside)
