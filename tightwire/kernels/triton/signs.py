"""Kernels that send one bit per element: signs with a mean magnitude per block, and votes."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton.parts import (
    INFINITY,
    NAN,
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
def sign(
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
def unsign(
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


@triton.jit(do_not_specialize=["key", "second_key"])
def cast(
    x: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
) -> None:
    """Writes the state and sign bits of blocks; where an element is zero, a random bit."""
    row, size = rows_of(numel, BLOCK, ROWS)
    most = tl.max(magnitude_of(load_rows(x, row, size, BLOCK, WIDTH)), axis=1)
    # ABSTAINED, VOTED or SPOILED.
    state = (most > 0).to(tl.int32) + (most >= INFINITY).to(tl.int32)
    tl.store(message + row, state.to(tl.uint8), mask=size > 0)
    place, inside = planes_of(size, 1, BYTES)
    index = (row * BLOCK)[:, None, None] + place
    values = tl.load(x + index, mask=inside, other=0.0)
    random = (random_bits(index, key, second_key) >> 31).to(tl.int32)
    bits = tl.where(magnitude_of(values) == 0, random, is_negative(values).to(tl.int32))
    packed = message + tl.cdiv(numel, BLOCK)
    put_codes(packed, row, size, tl.where(inside, bits, 0), BLOCK, 1, BYTES)


@triton.jit(do_not_specialize=["key", "second_key", "voters"])
def tally(
    messages: tl.tensor,
    outcome: tl.tensor,
    numel: tl.tensor,
    stride: tl.tensor,
    voters: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
) -> None:
    """Writes the message of what the majority of each element's votes is; of a tie, a random one."""
    row, size = rows_of(numel, BLOCK, ROWS)
    num_blocks = tl.cdiv(numel, BLOCK)
    state = tl.zeros([ROWS], tl.int32)
    # Votes for minus, less those for plus.
    lead = tl.zeros([ROWS, 8, BYTES], tl.int32)
    ballot = messages
    for _ in range(voters):
        its_state = tl.load(ballot + row, mask=size > 0, other=0).to(tl.int32)
        state = tl.maximum(state, its_state)
        votes = 2 * get_codes(ballot + num_blocks, row, size, BLOCK, 1, BYTES) - 1
        lead += tl.where(its_state[:, None, None] == 1, votes, 0)
        ballot += stride
    tl.store(outcome + row, state.to(tl.uint8), mask=size > 0)
    place, inside = planes_of(size, 1, BYTES)
    index = (row * BLOCK)[:, None, None] + place
    random = (random_bits(index, key, second_key) >> 31).to(tl.int32)
    bits = tl.where(lead == 0, random, (lead > 0).to(tl.int32))
    put_codes(outcome + num_blocks, row, size, tl.where(inside, bits, 0), BLOCK, 1, BYTES)


@triton.jit
def uncast(
    out: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    """Writes or adds 1 or −1; where a block abstained 0, and where it is spoiled NaN."""
    row, size = rows_of(numel, BLOCK, ROWS)
    state = tl.load(message + row, mask=size > 0, other=0).to(tl.int32)
    # The bits of 0, of 1 and of NaN.
    vote = tl.where(state == 0, 0, tl.where(state == 1, 0x3F800000, NAN)).to(tl.float32, bitcast=True)
    negative = get_codes(message + tl.cdiv(numel, BLOCK), row, size, BLOCK, 1, BYTES) > 0
    place, inside = planes_of(size, 1, BYTES)
    value = tl.where(negative, -vote[:, None, None], vote[:, None, None])
    write(out + (row * BLOCK)[:, None, None] + place, value, inside, ADD)
