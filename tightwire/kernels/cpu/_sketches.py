"""Loops of count-sketches: tables in which every element is added, by its sign, at one place of each row.

Elements are hashed in lanes of 16 neighbours, which lie side by side in a row too: a row is 16 sketches that
interleave, each element's place and sign are still drawn by a hash, and memory is read and written in whole
cache lines. Hashes are drawn for some groups of neighbours at a time, by whole vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import LOOP, U32, random_bits
from tightwire.kernels.cpu._vectors import LANES, add_signed, median_of_rows

# Groups whose hashes are drawn together.
TILE = 128
median_of_one, median_of_three, median_of_five = (median_of_rows(rows) for rows in (1, 3, 5))


@njit(**LOOP)
def draw_hashes(first: Any, count: Any, rows: Any, columns: Any, keys: Any, places: Any, bits: Any) -> None:
    """Writes where in the flat table groups of neighbours lie, and a bit per neighbour: whether it is subtracted.

    Args:
        first: of the hashes, each group having one per row.
        count: of hashes; a multiple of `rows`.
        rows: of the table.
        columns: of the table.
        keys: of the randomness.
        places: (≥ count,) int64.
        bits: (≥ count,) uint32.
    """
    width = np.uint64(columns // LANES)
    for j in range(count):
        index = U32(2 * (first + j))
        drawn = np.uint64(random_bits(index, keys[0], keys[1]))
        bits[j] = random_bits(U32(index + U32(1)), keys[0], keys[1])
        places[j] = np.int64((drawn * width) >> np.uint64(32)) * LANES
    for row in range(1, rows):
        for j in range(row, count, rows):
            places[j] += row * columns


@njit(**LOOP)
def add_to_sketch(x: Any, table: Any, keys: Any) -> None:
    """Adds float32 `x` to a table of (rows, width·LANES)."""
    rows, columns = table.shape
    places, bits = np.empty(TILE * rows, np.int64), np.empty(TILE * rows, np.uint32)
    groups, whole = (x.size + LANES - 1) // LANES, x.size // LANES
    padded = np.zeros(LANES, np.float32)
    padded[: x.size - whole * LANES] = x[whole * LANES :]
    for first in range(0, groups, TILE):
        count = min(TILE, groups - first)
        draw_hashes(first * rows, count * rows, rows, columns, keys, places, bits)
        for j in range(min(count, whole - first)):
            for k in range(j * rows, (j + 1) * rows):
                add_signed(x, (first + j) * LANES, bits[k], table, places[k])
        if first + count > whole:
            for k in range((count - 1) * rows, count * rows):
                add_signed(padded, 0, bits[k], table, places[k])


@njit(**LOOP)
def estimate_from_sketch(table: Any, out: Any, keys: Any) -> None:
    """Writes the estimate of every element: the median over 1, 3 or 5 rows."""
    rows, columns = table.shape
    places, bits = np.empty(TILE * rows, np.int64), np.empty(TILE * rows, np.uint32)
    groups, whole = (out.size + LANES - 1) // LANES, out.size // LANES
    padded = np.empty(LANES, np.float32)
    for first in range(0, groups, TILE):
        count = min(TILE, groups - first)
        draw_hashes(first * rows, count * rows, rows, columns, keys, places, bits)
        for j in range(count):
            is_whole = first + j < whole
            here, place = (out, (first + j) * LANES) if is_whole else (padded, 0)
            if rows == 1:
                median_of_one(table, places, bits, j, here, place)
            elif rows == 3:
                median_of_three(table, places, bits, 3 * j, here, place)
            else:
                median_of_five(table, places, bits, 5 * j, here, place)
    out[whole * LANES :] = padded[: out.size - whole * LANES]
