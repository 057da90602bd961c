"""Kernels that read sparse messages, and that draw elements at random."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.odds import ONE as _ONE
from tightwire.kernels.triton.parts import (
    bfloat_bits,
    float_of_bfloat,
    get_words,
    put_words,
    random_bits,
)

ONE = tl.constexpr(_ONE)
LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def index_at(
    message: tl.tensor,
    j: tl.tensor,
    here: tl.tensor,
    block: tl.tensor,
    kept: tl.tensor,
    num_blocks: tl.tensor,
    BLOCKED: tl.constexpr,
) -> tl.tensor:
    """Returns the j-th index of a message as int64, and whether it is within its block."""
    if BLOCKED:
        row = tl.minimum(j // kept, num_blocks)
        place = get_words(message, j, here, 2, tl.int32)
        index, within = row.to(tl.int64) * block + place, place < block
    else:
        index, within = get_words(message, j, here, 4, tl.int32).to(tl.int64), here
    return index, within


@triton.jit(do_not_specialize=["k", "kept", "num_blocks"])
def check(
    message: tl.tensor,
    fault: tl.tensor,
    numel: tl.tensor,
    k: tl.tensor,
    block: tl.tensor,
    kept: tl.tensor,
    num_blocks: tl.tensor,
    COUNTED: tl.constexpr,
    BLOCKED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Sets `fault` unless the indices of a message ascend strictly within the tensor, and are as many as it may have.

    Args:
        message: of `move` or `select_blocks`, or of `draw`.
        fault: int32.
        numel: of the tensor.
        k: indices, or the most there may be if COUNTED.
        block: elements of a block, if BLOCKED.
        kept: of every whole block, if BLOCKED.
        num_blocks: whole ones, if BLOCKED.
        COUNTED: whether the message begins with the number of its indices.
        BLOCKED: whether indices are within blocks.
        TILE: indices of a program.
    """
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    zero = tl.zeros([TILE], tl.int32)
    count = zero + k
    if COUNTED:
        count = get_words(message, zero, zero == 0, 4, tl.int32)
        message += 4
    impossible = (count < 0) | (count > k)
    here = (j < k) & (j < count)
    index, within = index_at(message, j, here, block, kept, num_blocks, BLOCKED)
    previous, _ = index_at(message, j - 1, here & (j > 0), block, kept, num_blocks, BLOCKED)
    previous = tl.where(j > 0, previous, -1)
    wrong = here & ((index <= previous) | (index >= numel) | (within == 0))
    tl.atomic_max(fault + zero, 1, mask=impossible | wrong)


@triton.jit(do_not_specialize=["k", "kept", "num_blocks"])
def place(
    out: tl.tensor,
    message: tl.tensor,
    k: tl.tensor,
    block: tl.tensor,
    kept: tl.tensor,
    num_blocks: tl.tensor,
    COUNTED: tl.constexpr,
    BLOCKED: tl.constexpr,
    ADD: tl.constexpr,
    KIND: tl.constexpr,
    ITEMSIZE: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Writes or adds the values of a message that was checked.

    Args:
        out: signed integers, the bits of floats.
        message: as for `check`.
        k: as for `check`.
        block: as for `check`.
        kept: as for `check`.
        num_blocks: as for `check`.
        COUNTED: as for `check`.
        BLOCKED: as for `check`.
        ADD: whether to add.
        KIND: of the floats, a torch dtype's name.
        ITEMSIZE: bytes of an element.
        WIDE: what to compute their bits in.
        TILE: indices of a program.
    """
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    here = j < k
    if COUNTED:
        zero = tl.zeros([TILE], tl.int32)
        here = here & (j < get_words(message, zero, zero == 0, 4, tl.int32))
        message += 4
    index, _ = index_at(message, j, here, block, kept, num_blocks, BLOCKED)
    # In two steps, for k·8 may be beyond int32.
    values = message + (2 if BLOCKED else 4) * (k + tl.zeros([1], tl.int64))
    bits = get_words(values, j.to(tl.int64), here, ITEMSIZE, WIDE).to(out.dtype.element_ty)
    if ADD:
        bits = sum_of(tl.load(out + index, mask=here, other=0), bits, KIND)
    tl.store(out + index, bits, mask=here)


@triton.jit
def sum_of(a: tl.tensor, b: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """Returns the bits of the sum of two floats given by theirs; halves are added in float32, and rounded once."""
    if KIND == "float64":
        return (a.to(tl.float64, bitcast=True) + b.to(tl.float64, bitcast=True)).to(tl.int64, bitcast=True)
    elif KIND == "float32":
        return (a.to(tl.float32, bitcast=True) + b.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True)
    elif KIND == "float16":
        total = a.to(tl.float16, bitcast=True).to(tl.float32) + b.to(tl.float16, bitcast=True).to(tl.float32)
        return total.to(tl.float16).to(tl.int16, bitcast=True)
    else:
        return bfloat_bits(float_of_bfloat(a) + float_of_bfloat(b)).to(tl.int16)


@triton.jit
def odds_at(x: tl.tensor, i: tl.tensor, numel: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """Returns the elements at `i`, and their odds in units of 1/ONE; 0 where they are zero."""
    value = tl.load(x + i, mask=i < numel, other=0.0).to(tl.float64)
    magnitude = tl.abs(value)
    scaled = tl.where(magnitude == 0, 0.0, tl.minimum(magnitude * scale, ONE - 1.0))
    return value, tl.where(magnitude == 0, 0, scaled.to(tl.int64) + 1)


@triton.jit
def sum_odds(x: tl.tensor, scale: tl.tensor, sums: tl.tensor, numel: tl.tensor, TILE: tl.constexpr) -> None:
    """Writes the sum of the odds of each tile, int64."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    _, odds = odds_at(x, i, numel, tl.load(scale))
    tl.store(sums + tl.program_id(0), tl.sum(odds))


@triton.jit(do_not_specialize=["start", "k"])
def draw(
    x: tl.tensor,
    scale: tl.tensor,
    sums: tl.tensor,
    ends: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    start: tl.tensor,
    k: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """Moves the elements where the sum of odds passes a whole number to the message, divided by their odds.

    Args:
        x: (numel,) finite float32; keeps what the message does not carry.
        scale: float64, of magnitudes to odds.
        sums: of each tile's odds.
        ends: sums of odds up to and with each tile.
        message: int32 count, k int32 indices, k values; zeros so far.
        numel: elements.
        start: of the sum, below ONE.
        k: places in the message.
        TILE: elements of a program.
    """
    tile = tl.program_id(0)
    i = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    value, odds = odds_at(x, i, numel, tl.load(scale))
    total = tl.load(ends + tile) - tl.load(sums + tile) + start + tl.cumsum(odds, axis=0)
    slot = total // ONE - 1
    drawn = slot >= (total - odds) // ONE
    whole = tl.full([TILE], ONE, tl.float64)
    value = value * (whole / tl.where(odds > 0, odds, 1).to(tl.float64))
    sent = tl.minimum(tl.maximum(value, -LARGEST), LARGEST).to(tl.float32)
    put_words(message + 4, slot, i, drawn, 4)
    values = message + 4 + 4 * (k + tl.zeros([1], tl.int64))
    put_words(values, slot, sent.to(tl.int32, bitcast=True), drawn, 4)
    tl.store(x + i, tl.load(x + i, mask=drawn, other=0.0) - sent, mask=drawn)
    zero = tl.zeros([1], tl.int32)
    count = (tl.load(ends + tile) + start) // ONE + zero
    put_words(message, zero, count, zero + tile == tl.num_programs(0) - 1, 4)


@triton.jit(do_not_specialize=["key", "second_key", "count"])
def places(
    out: tl.tensor,
    numel: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    count: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """Writes ascending places below `numel`, one drawn from each of `count` stretches of equal length."""
    j = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    first, end = j * numel // count, (j + 1) * numel // count
    drawn = random_bits(j, key, second_key).to(tl.int64) * (end - first)
    tl.store(out + j, first + (drawn >> 32), mask=j < count)
