"""Kernels that select the largest magnitudes without sorting.

A float's bits without its sign order as its magnitude does, so integers are compared, alike for every format. The
k-th largest is found from histograms of its digits, the highest first. Then every tile is told how many elements
before it are sent, from counts and a prefix sum, and moves its own in order. No result waits for the host.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import (
    bfloat_bits,
    float_of_bfloat,
    get_words,
    put_words,
)


@triton.jit
def magnitudes_at(
    x: tl.tensor, i: tl.tensor, numel: tl.tensor, MASK: tl.constexpr, WIDE: tl.constexpr
) -> tl.tensor:
    """Returns the bits without sign of the elements at `i`, -1 beyond the last."""
    inside = i < numel
    return tl.where(inside, tl.load(x + i, mask=inside, other=0).to(WIDE) & MASK, -1)


@triton.jit
def count_digits(
    x: tl.tensor,
    state: tl.tensor,
    counts: tl.tensor,
    numel: tl.tensor,
    tiles: tl.tensor,
    SHIFT: tl.constexpr,
    DIGIT: tl.constexpr,
    MASK: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Counts the next digit of the magnitudes that begin with the digits in `state`.

    All others, and what lies beyond the last element, are counted as digit 0: that changes no answer, for 0 is chosen
    when no other is, whatever its count.

    Args:
        x: (numel,) signed integers, the bits of floats.
        state: int64 of the digits so far, and how many magnitudes that begin so are wanted.
        counts: (2**DIGIT,) int32.
        numel: elements.
        tiles: of each program.
        SHIFT: bits below the digit.
        DIGIT: bits of the digit.
        MASK: all bits but the sign.
        WIDE: what to compute in.
        TILE: elements.
    """
    digits: tl.constexpr = 1 << DIGIT
    prefix = tl.load(state)
    found = tl.zeros([digits], tl.int32)
    for tile in range(tiles):
        i = (tl.program_id(0).to(tl.int64) * tiles + tile) * TILE + tl.arange(0, TILE)
        head = magnitudes_at(x, i, numel, MASK, WIDE) >> SHIFT
        alike = (head >> DIGIT) == prefix
        found += tl.histogram(tl.where(alike, head & (digits - 1), 0).to(tl.int32), digits)
    tl.atomic_add(counts + tl.arange(0, digits), found, mask=found > 0)


@triton.jit
def choose_digit(state: tl.tensor, counts: tl.tensor, DIGIT: tl.constexpr) -> None:
    """Appends the digit of the wanted magnitude, leaves how many are wanted beside larger ones, clears `counts`."""
    digit = tl.arange(0, 1 << DIGIT)
    count = tl.load(counts + digit).to(tl.int64)
    prefix, wanted = tl.load(state), tl.load(state + 1)
    reaching = tl.sum(count, axis=0) - tl.cumsum(count, axis=0) + count
    chosen = tl.maximum(tl.sum((reaching >= wanted).to(tl.int32), axis=0) - 1, 0)
    larger = tl.sum(tl.where(digit > chosen, count, 0), axis=0)
    tl.store(state, (prefix << DIGIT) | chosen.to(tl.int64))
    tl.store(state + 1, wanted - larger)
    tl.store(counts + digit, tl.zeros([1 << DIGIT], tl.int32))


@triton.jit(do_not_specialize=["low"])
def raise_to(state: tl.tensor, low: tl.tensor) -> None:
    """Makes sure that nothing below `low` is sent: of equal magnitudes none, if those are below."""
    magnitude, wanted = tl.load(state), tl.load(state + 1)
    is_below = magnitude < low
    tl.store(state, tl.where(is_below, low - 1, magnitude))
    tl.store(state + 1, tl.where(is_below, 0, wanted))


@triton.jit
def count_tiles(
    x: tl.tensor,
    state: tl.tensor,
    counts: tl.tensor,
    numel: tl.tensor,
    MASK: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Writes how many elements of each tile are larger than the magnitude in `state`, and how many are equal.

    Args:
        x: (numel,) signed integers, the bits of floats.
        state: int64 of a magnitude, and how many equal ones are sent.
        counts: (2, tiles) int64.
        numel: elements.
        MASK: all bits but the sign.
        WIDE: what to compute in.
        TILE: elements.
    """
    tile = tl.program_id(0)
    bits = magnitudes_at(x, tile.to(tl.int64) * TILE + tl.arange(0, TILE), numel, MASK, WIDE)
    magnitude = tl.load(state)
    larger, equal = tl.sum((bits > magnitude).to(tl.int32)), tl.sum((bits == magnitude).to(tl.int32))
    tl.store(counts + tile, larger.to(tl.int64))
    tl.store(counts + tl.num_programs(0) + tile, equal.to(tl.int64))


@triton.jit
def move(
    x: tl.tensor,
    state: tl.tensor,
    counts: tl.tensor,
    ends: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    counted: tl.tensor,
    numel: tl.tensor,
    COUNTED: tl.constexpr,
    ITEMSIZE: tl.constexpr,
    MASK: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Moves what is larger than the magnitude in `state`, and the first equal ones, to the message.

    Args:
        x: (numel,) signed integers, the bits of floats; zero afterwards where it was moved.
        state: int64 of a magnitude, and how many equal ones are sent.
        counts: as `count_tiles` writes.
        ends: (2, tiles) int64, their sums up to and with each tile.
        indices: bytes of int32.
        values: bytes of the elements.
        counted: bytes of an int32, how many were moved, if COUNTED.
        numel: elements.
        COUNTED: whether to write that.
        ITEMSIZE: bytes of an element.
        MASK: all bits but the sign.
        WIDE: what to compute in.
        TILE: elements.
    """
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    i = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    magnitudes = magnitudes_at(x, i, numel, MASK, WIDE)
    magnitude, wanted = tl.load(state), tl.load(state + 1)
    larger_before = tl.load(ends + tile) - tl.load(counts + tile)
    equal_before = tl.load(ends + tiles + tile) - tl.load(counts + tiles + tile)
    equal = (magnitudes == magnitude).to(tl.int32)
    rank = equal_before + tl.cumsum(equal, axis=0) - equal
    sent = (magnitudes > magnitude) | ((equal > 0) & (rank < wanted))
    ones = sent.to(tl.int32)
    before = larger_before + tl.minimum(equal_before, wanted)
    slot = before + tl.cumsum(ones, axis=0) - ones
    put_words(indices, slot, i, sent, 4)
    put_words(values, slot, tl.load(x + i, mask=sent, other=0).to(WIDE), sent, ITEMSIZE)
    tl.store(x + i, tl.zeros([TILE], WIDE).to(x.dtype.element_ty), mask=sent)
    if COUNTED:
        last = (tl.zeros([1], tl.int32) + tile) == tiles - 1
        put_words(counted, tl.zeros([1], tl.int32), before + tl.sum(ones) + tl.zeros([1], tl.int32), last, 4)


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
        message: of `move` or `select_blocks`, or of `sample_by_magnitude`.
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
    fault: tl.tensor,
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
        fault: int32; where it is not 0, nothing is done.
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
    here = (j < k) & (tl.load(fault) == 0)
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
