"""Kernels of count-sketches, whose sums are taken in the order of the elements: atomic additions would have none."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import random_bits


@triton.jit(do_not_specialize=["key", "second_key", "width"])
def draw_places(
    out: tl.tensor,
    groups: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Writes the place of every group of neighbours in the flat table, (ROWS, groups) int32."""
    j = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    row, group = j // groups, j % groups
    drawn = random_bits(2 * (group * ROWS + row), key, second_key).to(tl.int64)
    tl.store(out + j, (row * width + ((drawn * width) >> 32)).to(tl.int32), mask=j < ROWS * groups)


@triton.jit
def signed(values: tl.tensor, bits: tl.tensor, LANES: tl.constexpr) -> tl.tensor:
    """Returns float32 of (groups, LANES), each sign turned if the bit of its lane is set in its group's bits."""
    turned = ((bits[:, None] >> tl.arange(0, LANES)[None, :].to(tl.uint32)) & 1) << 31
    return (values.to(tl.uint32, bitcast=True) ^ turned).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["key", "second_key"])
def add_to_sketch(
    table: tl.tensor,
    x: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    numel: tl.tensor,
    groups: tl.tensor,
    places: tl.tensor,
    width: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    PLACES: tl.constexpr,
) -> None:
    """Adds to each place of a table the groups that are drawn to it, by ascending index.

    Args:
        table: (places, LANES) float32, of all rows.
        x: (numel,) float32.
        order: int64, the groups of each row, sorted by their place.
        starts: (places + 1,) int64, where in `order` those of each place begin.
        numel: elements.
        groups: of neighbours.
        places: of all rows.
        width: places of a row.
        key: of the randomness.
        second_key: of the randomness.
        ROWS: of the table.
        LANES: neighbours of a group.
        PLACES: of a program.
    """
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    here = place < places
    lane = tl.arange(0, LANES)[None, :]
    total = tl.load(table + place[:, None] * LANES + lane, mask=here[:, None], other=0.0)
    first = tl.load(starts + place, mask=here, other=0)
    count = tl.load(starts + place + 1, mask=here, other=0) - first
    for turn in range(tl.max(count)):
        has = turn < count
        group = tl.load(order + first + turn, mask=has, other=0) % groups
        bits = random_bits(2 * (group * ROWS + place // width) + 1, key, second_key)
        i = group[:, None] * LANES + lane
        values = tl.load(x + i, mask=has[:, None] & (i < numel), other=0.0)
        total = tl.where(has[:, None], total + signed(values, bits, LANES), total)
    tl.store(table + place[:, None] * LANES + lane, total, mask=here[:, None])


@triton.jit
def smaller(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Returns the smaller of two."""
    return tl.where(a < b, a, b)


@triton.jit
def larger(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Returns the larger of two."""
    return tl.where(a > b, a, b)


@triton.jit
def seen_in(
    table: tl.tensor,
    group: tl.tensor,
    inside: tl.tensor,
    row: tl.constexpr,
    width: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
) -> tl.tensor:
    """Returns what one row says of groups, (groups, LANES)."""
    index = 2 * (group * ROWS + row)
    drawn = random_bits(index, key, second_key).to(tl.int64)
    place = row * width.to(tl.int64) + ((drawn * width) >> 32)
    values = tl.load(
        table + place[:, None] * LANES + tl.arange(0, LANES)[None, :], mask=inside[:, None], other=0.0
    )
    return signed(values, random_bits(index + 1, key, second_key), LANES)


@triton.jit(do_not_specialize=["key", "second_key"])
def estimate_from_sketch(
    out: tl.tensor,
    table: tl.tensor,
    numel: tl.tensor,
    width: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """Writes the estimate of every element: the median over 1, 3 or 5 rows."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    inside = group * LANES < numel
    a = seen_in(table, group, inside, 0, width, key, second_key, ROWS, LANES)
    if ROWS >= 3:
        b = seen_in(table, group, inside, 1, width, key, second_key, ROWS, LANES)
        c = seen_in(table, group, inside, 2, width, key, second_key, ROWS, LANES)
        if ROWS == 5:
            d = seen_in(table, group, inside, 3, width, key, second_key, ROWS, LANES)
            e = seen_in(table, group, inside, 4, width, key, second_key, ROWS, LANES)
            low = larger(smaller(a, b), smaller(c, d))
            c = smaller(larger(a, b), larger(c, d))
            a, b = low, e
        a = larger(smaller(a, b), smaller(larger(a, b), c))
    i = group[:, None] * LANES + tl.arange(0, LANES)[None, :]
    tl.store(out + i, a, mask=i < numel)
