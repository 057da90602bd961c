"""Kernels that round blocks to a grid: a program for some blocks, each of which is read twice, from a cache."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import (
    CEILING,
    FLOOR,
    INFINITY,
    NAN,
    ROUNDER,
    fold,
    get_codes,
    get_floats,
    is_negative,
    load_rows,
    magnitude_of,
    planes_of,
    put_codes,
    put_words,
    random_bits,
    rows_of,
    write,
)


@triton.jit
def norm_of(x: tl.tensor, largest: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """Returns the Euclidean norm of each row; in float64, whose square roots are rounded alike everywhere."""
    scaled = x * tl.div_rn(tl.full(largest.shape, 1.0, tl.float32), largest)[:, None]
    return (largest.to(tl.float64) * tl.sqrt(fold(scaled * scaled, WIDTH).to(tl.float64))).to(tl.float32)


@triton.jit
def doubling_level(y: tl.tensor, random: tl.tensor, LEVELS: tl.constexpr) -> tl.tensor:
    """Returns the level of |y| ≤ 1, stochastically: 0, and l for 2**(l − LEVELS).

    In units of 2**-23: from the lowest level on by exponent and mantissa, whose carry is right on average; below, in
    proportion.
    """
    magnitude = magnitude_of(y)
    is_above = magnitude >= (128 - LEVELS) << 23
    small = tl.where(is_above, 0.0, tl.abs(y))
    below = (small * (2.0 ** (LEVELS - 1)) * 8388608.0).to(tl.int32)
    exact = tl.where(is_above, magnitude - ((127 - LEVELS) << 23), below)
    return tl.minimum((exact + (random >> 9).to(tl.int32)) >> 23, LEVELS)


@triton.jit
def doubling_value(level: tl.tensor, LEVELS: tl.constexpr) -> tl.tensor:
    """Returns what a level above 0 stands for, in steps."""
    return tl.where(level > 0, (level + (127 - LEVELS)) << 23, 0).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["key", "second_key"])
def quantise(
    x: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    share: tl.tensor,
    last_share: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    LEVELS: tl.constexpr,
    L2: tl.constexpr,
    CLIP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DOUBLING: tl.constexpr,
) -> None:
    """Writes steps and codes, and leaves in `x` what they miss.

    Args:
        x: (numel,) float32.
        message: as `Grid` says.
        numel: elements.
        key: of the randomness.
        second_key: of the randomness.
        share: what clips a whole block, in Euclidean norms.
        last_share: what clips the last block.
    """
    row, size = rows_of(numel, BLOCK, ROWS)
    values = load_rows(x, row, size, BLOCK, WIDTH)
    most = tl.max(magnitude_of(values), axis=1)
    largest = most.to(tl.float32, bitcast=True)
    scale = largest
    if L2:
        scale = norm_of(values, largest, WIDTH)
    if CLIP:
        norm = norm_of(values, largest, WIDTH)
        scale = tl.minimum(scale, tl.where(size == BLOCK, share, last_share) * norm)
    scale = tl.minimum(scale, CEILING)
    sent, finite = largest >= FLOOR, most < INFINITY
    reach = tl.full(scale.shape, 1.0 if DOUBLING else LEVELS, tl.float32)
    step = tl.where(sent, tl.div_rn(scale, reach), 0.0).to(tl.int32, bitcast=True)
    inverse = tl.where(sent, tl.div_rn(reach, scale), 0.0)
    step = tl.where(finite, step, NAN)
    put_words(message, row, step, size > 0, 4)
    step = step.to(tl.float32, bitcast=True)[:, None, None]

    place, inside = planes_of(size, BITS, BYTES)
    index = (row * BLOCK)[:, None, None] + place
    exact = tl.load(x + index, mask=inside, other=0.0)
    scaled = tl.where(finite[:, None, None], exact * inverse[:, None, None], 0.0)
    if DOUBLING:
        level = doubling_level(scaled, random_bits(index, key, second_key), LEVELS)
        value = doubling_value(level, LEVELS)
        negative = is_negative(scaled)
        codes = tl.where(negative, -level, level)
        rounded = tl.where(negative, -value, value)
    else:
        if STOCHASTIC:
            random = (random_bits(index, key, second_key) >> 8).to(tl.int32).to(tl.float32)
            raised = scaled + random * (2.0**-24)
            rounded = (raised + ROUNDER) - ROUNDER
            # Downward. Not by tl.floor, which takes what is denormal for zero.
            rounded -= (rounded > raised).to(tl.float32)
        else:
            rounded = (scaled + ROUNDER) - ROUNDER
        rounded = tl.minimum(tl.maximum(rounded, -LEVELS), LEVELS)
        codes = rounded.to(tl.int32)
    tl.store(x + index, exact - rounded * step, mask=inside)
    packed = message + 4 * tl.cdiv(numel, BLOCK)
    put_codes(packed, row, size, tl.where(inside, codes + LEVELS, 0), BLOCK, BITS, BYTES)


@triton.jit
def dequantise(
    out: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    LEVELS: tl.constexpr,
    DOUBLING: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    """Writes or adds what each code stands for."""
    row, size = rows_of(numel, BLOCK, ROWS)
    step = get_floats(message, row, size > 0)[:, None, None]
    codes = get_codes(message + 4 * tl.cdiv(numel, BLOCK), row, size, BLOCK, BITS, BYTES) - LEVELS
    if DOUBLING:
        size_in_steps = doubling_value(tl.abs(codes), LEVELS)
        value = tl.where(codes < 0, -size_in_steps, size_in_steps)
    else:
        value = codes.to(tl.float32)
    place, inside = planes_of(size, BITS, BYTES)
    write(out + (row * BLOCK)[:, None, None] + place, value * step, inside, ADD)
