"""Kernels that send one bit per element, and the mean magnitudes of a block."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import (
    fold,
    get_codes,
    get_floats,
    is_negative,
    load_rows,
    magnitude_of,
    planes_of,
    put_codes,
    put_words,
    rows_of,
    write,
)


@triton.jit
def mean_of(
    magnitudes: tl.tensor, side: tl.tensor, size: tl.tensor, largest: tl.tensor, WIDTH: tl.constexpr
) -> tl.tensor:
    """Returns the mean magnitude of the elements of each row that are on a side."""
    share = tl.div_rn(tl.full(largest.shape, 1.0, tl.float32), size.to(tl.float32))
    folded = fold(tl.where(side, magnitudes * share[:, None], 0.0), WIDTH)
    count = tl.maximum(tl.sum(side.to(tl.int32), axis=1), 1)
    mean = (folded.to(tl.float64) * (size.to(tl.float64) / count.to(tl.float64))).to(tl.float32)
    return tl.where(mean > largest, largest, mean)


@triton.jit
def encode_signs(
    x: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
    TWO_SIDED: tl.constexpr,
) -> None:
    """Writes the means and sign bits of blocks, and leaves in `x` what they miss."""
    row, size = rows_of(numel, BLOCK, ROWS)
    values = load_rows(x, row, size, BLOCK, WIDTH)
    inside = tl.arange(0, WIDTH)[None, :] < size[:, None]
    magnitudes = magnitude_of(values)
    largest = tl.max(magnitudes, axis=1).to(tl.float32, bitcast=True)
    magnitudes = magnitudes.to(tl.float32, bitcast=True)
    if TWO_SIDED:
        negative = is_negative(values)
        above = mean_of(magnitudes, inside & (negative == 0), size, largest, WIDTH)
        below = mean_of(magnitudes, inside & negative, size, largest, WIDTH)
        put_words(message, 2 * row, above.to(tl.int32, bitcast=True), size > 0, 4)
        put_words(message, 2 * row + 1, below.to(tl.int32, bitcast=True), size > 0, 4)
    else:
        above = mean_of(magnitudes, inside, size, largest, WIDTH)
        below = above
        put_words(message, row, above.to(tl.int32, bitcast=True), size > 0, 4)

    place, present = planes_of(size, 1, BYTES)
    index = (row * BLOCK)[:, None, None] + place
    exact = tl.load(x + index, mask=present, other=0.0)
    bits = is_negative(exact)
    sent = tl.where(bits, -below[:, None, None], above[:, None, None])
    tl.store(x + index, exact - sent, mask=present)
    packed = message + 4 * (2 if TWO_SIDED else 1) * tl.cdiv(numel, BLOCK)
    put_codes(packed, row, size, (bits & present).to(tl.int32), BLOCK, 1, BYTES)


@triton.jit
def decode_signs(
    out: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    """Writes or adds what each bit stands for."""
    row, size = rows_of(numel, BLOCK, ROWS)
    if TWO_SIDED:
        above = get_floats(message, 2 * row, size > 0)
        below = get_floats(message, 2 * row + 1, size > 0)
    else:
        above = get_floats(message, row, size > 0)
        below = above
    packed = message + 4 * (2 if TWO_SIDED else 1) * tl.cdiv(numel, BLOCK)
    negative = get_codes(packed, row, size, BLOCK, 1, BYTES) > 0
    place, inside = planes_of(size, 1, BYTES)
    value = tl.where(negative, -below[:, None, None], above[:, None, None])
    write(out + (row * BLOCK)[:, None, None] + place, value, inside, ADD)
