"""Loops of count-sketches: tables in which every element is added, by its sign, at one place of each row.

Elements are hashed in lanes of 16 neighbours, which lie side by side in a row too: a row is 16 sketches that
interleave, each element's place and sign are still drawn by a hash, and memory is read and written in whole
cache lines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import LOOP, U32, float_of, random_bits

LANES = 16


@njit(inline="always")
def spot(group: Any, row: Any, rows: Any, width: Any, keys: Any) -> Any:
    """Returns where a group of neighbours lies in a row."""
    drawn = np.uint64(random_bits(U32(2 * (group * rows + row)), keys[0], keys[1]))
    return np.int64((drawn * np.uint64(width)) >> np.uint64(32)) * LANES


@njit(inline="always")
def signs(group: Any, row: Any, rows: Any, keys: Any) -> Any:
    """Returns a bit per neighbour: whether it is subtracted."""
    return random_bits(U32(2 * (group * rows + row) + 1), keys[0], keys[1])


@njit(**LOOP)
def add_to_sketch(x: Any, table: Any, keys: Any) -> None:
    """Adds float32 `x` to a table of (rows, width·LANES)."""
    rows, width = table.shape[0], table.shape[1] // LANES
    values, padded = x.view(np.uint32), np.zeros(LANES, np.uint32)
    for group in range((x.size + LANES - 1) // LANES):
        here = values[group * LANES : (group + 1) * LANES]
        if here.size < LANES:
            padded[: here.size] = here
            here = padded
        for row in range(rows):
            bits = signs(group, row, rows, keys)
            place = spot(group, row, rows, width, keys)
            there = table[row, place : place + LANES]
            for lane in range(LANES):
                there[lane] += turned(here[lane], bits, lane)


@njit(inline="always")
def turned(value: Any, bits: Any, lane: Any) -> Any:
    """Returns the float32 of these bits, its sign turned if the bit of its lane says so."""
    return float_of(U32(value ^ U32(U32(bits << U32(31 - lane)) & U32(0x80000000))))


@njit(inline="always")
def middle(a: Any, b: Any, c: Any) -> Any:
    """Returns the median of three."""
    return larger(smaller(a, b), smaller(larger(a, b), c))


@njit(inline="always")
def smaller(a: Any, b: Any) -> Any:
    """Returns the smaller one, by an instruction that works on many at once, unlike `min`, which cares for NaN."""
    return a if a < b else b


@njit(inline="always")
def larger(a: Any, b: Any) -> Any:
    """Returns the larger one; see `smaller`."""
    return a if a > b else b


@njit(**LOOP)
def estimate_from_sketch(table: Any, out: Any, keys: Any) -> None:
    """Writes the estimate of every element: the median over 1, 3 or 5 rows."""
    rows, width = table.shape[0], table.shape[1] // LANES
    values = table.view(np.uint32)
    a, b, c = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    d, e = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for group in range((out.size + LANES - 1) // LANES):
        look(values, group, 0, rows, width, keys, a)
        if rows >= 3:
            look(values, group, 1, rows, width, keys, b)
            look(values, group, 2, rows, width, keys, c)
        if rows == 5:
            look(values, group, 3, rows, width, keys, d)
            look(values, group, 4, rows, width, keys, e)
            for lane in range(LANES):
                low = larger(smaller(a[lane], b[lane]), smaller(c[lane], d[lane]))
                c[lane] = smaller(larger(a[lane], b[lane]), larger(c[lane], d[lane]))
                a[lane], b[lane] = low, e[lane]
        if rows >= 3:
            for lane in range(LANES):
                a[lane] = middle(a[lane], b[lane], c[lane])
        here = out[group * LANES : (group + 1) * LANES]
        if here.size == LANES:
            for lane in range(LANES):
                here[lane] = a[lane]
        else:
            here[:] = a[: here.size]


@njit(inline="always")
def look(values: Any, group: Any, row: Any, rows: Any, width: Any, keys: Any, seen: Any) -> None:
    """Reads what one row says of a group."""
    bits = signs(group, row, rows, keys)
    place = spot(group, row, rows, width, keys)
    there = values[row, place : place + LANES]
    for lane in range(LANES):
        seen[lane] = turned(there[lane], bits, lane)
