"""Kernels that write, count and read votes: one bit per element."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import (
    INFINITY,
    NAN,
    get_codes,
    is_negative,
    load_rows,
    magnitude_of,
    planes_of,
    put_codes,
    random_bits,
    rows_of,
    write,
)


@triton.jit(do_not_specialize=["key", "second_key"])
def encode_votes(
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
def count_votes(
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
def decode_votes(
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
