"""Kernels that cast float32 to half-precision formats and back."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import (
    INFINITY,
    bfloat_bits,
    float_of_bfloat,
    magnitude_of,
    write,
)


@triton.jit
def encode_half(
    x: tl.tensor, halves: tl.tensor, numel: tl.tensor, BFLOAT: tl.constexpr, TILE: tl.constexpr
) -> None:
    """Writes float32 as the bits of halves, saturating what is finite; `x` keeps the difference."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = i < numel
    exact = tl.load(x + i, mask=inside, other=0.0)
    bits = magnitude_of(exact)
    if BFLOAT:
        # What would round to infinity keeps its high half, which is the largest value.
        high = (exact.to(tl.uint32, bitcast=True) >> 16).to(tl.int32)
        half = tl.where((bits >= 0x7F7F8000) & (bits < INFINITY), high, bfloat_bits(exact))
        rounded = float_of_bfloat(half)
        half = half.to(tl.int16)
    else:
        within = tl.minimum(tl.maximum(exact, -65504.0), 65504.0)
        half = tl.where(bits < INFINITY, within, exact).to(tl.float16)
        rounded = half.to(tl.float32)
        half = half.to(tl.int16, bitcast=True)
    tl.store(halves + i, half, mask=inside)
    tl.store(x + i, exact - rounded, mask=inside)


@triton.jit
def decode_half(
    out: tl.tensor,
    halves: tl.tensor,
    numel: tl.tensor,
    BFLOAT: tl.constexpr,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Writes or adds the values of halves, given as their bits."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = i < numel
    half = tl.load(halves + i, mask=inside, other=0)
    if BFLOAT:
        value = float_of_bfloat(half)
    else:
        value = half.to(tl.float16, bitcast=True).to(tl.float32)
    write(out + i, value, inside, ADD)
