"""Kernels that send one byte per element: powers of two, and 8-bit formats with a scale per block."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import (
    CEILING,
    FLOOR,
    INFINITY,
    NAN,
    ROUNDER,
    get_floats,
    load_rows,
    magnitude_of,
    put_words,
    random_bits,
    rows_of,
    write,
)


@triton.jit
def power_of(code: tl.tensor, lowest: tl.tensor, negative: tl.tensor) -> tl.tensor:
    """Returns the float32 whose exponent is `code` above the lowest; 0 for code 0."""
    bits = tl.where(code > 0, (code + lowest) << 23, 0)
    return tl.where(negative, bits | -0x80000000, bits).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["key", "second_key"])
def encode_powers(
    x: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Writes each block's top exponent and a byte per element: its sign, and its exponent below the top."""
    row, size = rows_of(numel, BLOCK, ROWS)
    exact = load_rows(x, row, size, BLOCK, WIDTH)
    magnitude = magnitude_of(exact)
    most = tl.max(magnitude, axis=1)
    finite = (most < INFINITY)[:, None]
    top = tl.minimum((most >> 23) + 1, 254)
    tl.store(message + row, tl.where(most < INFINITY, top, 255).to(tl.uint8), mask=size > 0)
    lowest = tl.maximum(top - 127, 0)[:, None]
    place = tl.arange(0, WIDTH)[None, :]
    inside, index = place < size[:, None], (row * BLOCK)[:, None] + place
    # Adding random bits below the exponent carries into it with the probability of the fraction. As unsigned, for the
    # magnitude of a NaN may carry into the sign; such a block is discarded.
    carried = (magnitude.to(tl.uint32) + (random_bits(index, key, second_key) >> 9)) >> 23
    code = tl.maximum(tl.minimum(carried.to(tl.int32), 254) - lowest, 0)
    negative = (exact.to(tl.int32, bitcast=True) < 0) & finite
    code = tl.where(finite, code, 0)
    sent = tl.where(finite, power_of(code, lowest, negative).to(tl.int32, bitcast=True), NAN)
    tl.store(x + index, exact - sent.to(tl.float32, bitcast=True), mask=inside)
    codes = message + tl.cdiv(numel, BLOCK)
    tl.store(codes + index, (code | (negative.to(tl.int32) << 7)).to(tl.uint8), mask=inside)


@triton.jit
def decode_powers(
    out: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    """Writes or adds the powers of two of a message."""
    row, size = rows_of(numel, BLOCK, ROWS)
    top = tl.load(message + row, mask=size > 0, other=0).to(tl.int32)[:, None]
    place = tl.arange(0, WIDTH)[None, :]
    inside, index = place < size[:, None], (row * BLOCK)[:, None] + place
    code = tl.load(message + tl.cdiv(numel, BLOCK) + index, mask=inside, other=0).to(tl.int32)
    value = power_of(code & 127, tl.maximum(top - 127, 0), (code & 128) > 0).to(tl.int32, bitcast=True)
    write(out + index, tl.where(top < 255, value, NAN).to(tl.float32, bitcast=True), inside, ADD)


@triton.jit
def encode_fp8(
    x: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    top: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
) -> None:
    """Writes each block's step, by which its largest magnitude is the format's, and a byte per element."""
    row, size = rows_of(numel, BLOCK, ROWS)
    exact = load_rows(x, row, size, BLOCK, WIDTH)
    most = tl.max(magnitude_of(exact), axis=1)
    largest, finite = most.to(tl.float32, bitcast=True), most < INFINITY
    scale = tl.minimum(largest, CEILING)
    reach = tl.zeros_like(scale) + top
    step = tl.where(largest >= FLOOR, tl.div_rn(scale, reach), 0.0).to(tl.int32, bitcast=True)
    inverse = tl.where(largest >= FLOOR, tl.div_rn(reach, scale), 0.0)[:, None]
    step = tl.where(finite, step, NAN)
    put_words(message, row, step, size > 0, 4)
    scaled = tl.where(finite[:, None], exact * inverse, 0.0)
    code, value = rounded_fp8(scaled, MANTISSA, BIAS)
    place = tl.arange(0, WIDTH)[None, :]
    inside, index = place < size[:, None], (row * BLOCK)[:, None] + place
    tl.store(x + index, exact - value * step.to(tl.float32, bitcast=True)[:, None], mask=inside)
    tl.store(message + 4 * tl.cdiv(numel, BLOCK) + index, code.to(tl.uint8), mask=inside)


@triton.jit
def rounded_fp8(scaled: tl.tensor, MANTISSA: tl.constexpr, BIAS: tl.constexpr) -> tl.tensor:
    """Returns the bits of float32 in an 8-bit format, and their value: to nearest, ties to even.

    By hand, for not every GPU has both formats, nor rounds to them alike.
    """
    bits = scaled.to(tl.int32, bitcast=True)
    # Saturated: a step's rounding can bring the largest magnitude beyond the format's.
    saturated = 448.0 if MANTISSA == 3 else 57344.0
    magnitude = tl.minimum(tl.abs(scaled), saturated).to(tl.int32, bitcast=True)
    drop: tl.constexpr = 23 - MANTISSA
    normal = (magnitude + ((1 << (drop - 1)) - 1) + ((magnitude >> drop) & 1)) >> drop
    # Below the smallest normal the format is a uniform grid.
    is_normal = magnitude >= (128 - BIAS) << 23
    small = tl.where(is_normal, 0, magnitude).to(tl.float32, bitcast=True)
    steps = (small * (2.0 ** (BIAS + MANTISSA - 1)) + ROUNDER) - ROUNDER
    code = tl.where(is_normal, normal - ((127 - BIAS) << MANTISSA), steps.to(tl.int32))
    spaced = (steps * (2.0 ** (1 - BIAS - MANTISSA))).to(tl.int32, bitcast=True)
    sign = bits & -0x80000000
    value = (tl.where(is_normal, normal << drop, spaced) | sign).to(tl.float32, bitcast=True)
    return code | tl.where(bits < 0, 128, 0), value


@triton.jit
def decode_fp8(
    out: tl.tensor,
    message: tl.tensor,
    values: tl.tensor,
    numel: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    """Writes or adds value × step, the value of every byte being given."""
    row, size = rows_of(numel, BLOCK, ROWS)
    step = get_floats(message, row, size > 0)[:, None]
    place = tl.arange(0, WIDTH)[None, :]
    inside, index = place < size[:, None], (row * BLOCK)[:, None] + place
    code = tl.load(message + 4 * tl.cdiv(numel, BLOCK) + index, mask=inside, other=0).to(tl.int32)
    write(out + index, tl.load(values + code, mask=inside, other=0.0) * step, inside, ADD)
