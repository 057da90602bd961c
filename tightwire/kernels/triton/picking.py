"""Kernels that select the largest magnitudes without sorting.

A float's bits without its sign order as its magnitude does, so integers are compared, alike for every format. The
k-th largest is found from histograms of its digits, the highest first. Then every tile is told how many elements
before it are sent, from counts and a prefix sum, and moves its own in order. No result waits for the host.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton.parts import put_words


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


@triton.jit(do_not_specialize=["kept", "last_kept"])
def select_blocks(
    x: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    kept: tl.tensor,
    last_kept: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    ITEMSIZE: tl.constexpr,
    MASK: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Moves the largest magnitudes of every block to the message, the lowest indices among equals.

    Args:
        x: (numel,) signed integers, the bits of floats.
        message: uint16 places within blocks, then values.
        numel: elements.
        kept: of a whole block.
        last_kept: of the last block, if that is shorter.
        BLOCK: elements of a block.
        ROWS: blocks of a program.
        WIDTH: a power of two that holds a block.
        ITEMSIZE: bytes of an element.
        MASK: all bits but the sign.
        WIDE: what to compute in.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    size = tl.minimum(tl.maximum(numel - row * BLOCK, 0), BLOCK)
    k = tl.where(size == BLOCK, kept, tl.where(size > 0, last_kept, 0))
    place = tl.arange(0, WIDTH)[None, :]
    i, inside = (row * BLOCK)[:, None] + place, place < size[:, None]
    elements = tl.load(x + i, mask=inside, other=0)
    magnitudes = tl.where(inside, elements.to(WIDE) & MASK, -1)
    # The k-th largest, bit by bit: a bit is set if k elements still reach it.
    threshold = tl.zeros([ROWS], WIDE)
    for step in range(1, 8 * ITEMSIZE):
        candidate = threshold | (tl.full([ROWS], 1, WIDE) << (8 * ITEMSIZE - 1 - step))
        reaching = tl.sum((magnitudes >= candidate[:, None]).to(tl.int32), axis=1)
        threshold = tl.where(reaching >= k, candidate, threshold)
    larger = (magnitudes > threshold[:, None]).to(tl.int32)
    equal = (magnitudes == threshold[:, None]).to(tl.int32)
    ties = (k - tl.sum(larger, axis=1))[:, None]
    sent = (larger > 0) | ((equal > 0) & (tl.cumsum(equal, axis=1) <= ties))
    ones = sent.to(tl.int32)
    slot = (row * kept)[:, None] + tl.cumsum(ones, axis=1) - ones
    places = place + tl.zeros([ROWS, WIDTH], tl.int32)
    put_words(message, slot, places, sent, 2)
    total = (numel // BLOCK).to(tl.int64) * kept + (last_kept if numel % BLOCK else 0)
    put_words(message + 2 * total, slot, elements.to(WIDE), sent, ITEMSIZE)
    tl.store(x + i, tl.zeros([ROWS, WIDTH], WIDE).to(x.dtype.element_ty), mask=sent)
