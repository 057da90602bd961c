"""Loops that turn chunks into their strongest cosine waves and back.

Chunks are transformed side by side: row j of a tile holds element j of each, so that a rotation of two elements is two
rows of memory. Products are never fused with sums, so that every device gets the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import F32, INFINITY, LOOP, MAGNITUDE, U32, float_of, lowest_bit
from tightwire.kernels.cpu._blocks import select_from
from tightwire.kernels.cpu._vectors import LANES, SIDE, largest_of_columns, transpose

# Elements that are transformed together: what the nearest cache holds beside all else.
TILE = 4096
U64 = np.uint64
# Beyond so many waves of a chunk, finding them chunk by chunk is faster.
FEW = 32
find_one, find_two, find_four = (largest_of_columns(kept) for kept in (1, 2, 4))
find_eight, find_sixteen, find_all_few = (largest_of_columns(kept) for kept in (8, 16, FEW))


@njit(**LOOP)
def fill_tile(x: Any, scale: Any, tile: Any) -> None:
    """Writes consecutive chunks, as many as a tile has columns, to these, scaled.

    Args:
        x: float32.
        scale: of all elements.
        tile: (chunk, columns) float32.
    """
    chunk, columns = tile.shape
    for column in range(0, columns, SIDE):
        for i in range(0, chunk, SIDE):
            transpose(x, column * chunk + i, chunk, scale, tile, i * columns + column, columns)


@njit(**LOOP)
def rotate(tile: Any, pairs: Any, weights: Any) -> None:
    """Applies rotations to pairs of rows; see `_rotations.CosineNetwork`."""
    for k in range(len(pairs)):
        a, b = tile[pairs[k, 0]], tile[pairs[k, 1]]
        p, q, r, s = weights[k, 0], weights[k, 1], weights[k, 2], weights[k, 3]
        for column in range(a.size):
            first, second = a[column], b[column]
            a[column] = p * first + q * second
            b[column] = r * second + s * first


@njit(**LOOP)
def limited(value: Any, limit: Any) -> Any:
    """Returns a value cut to a limit; one that is not finite stays so."""
    if not np.isfinite(value):
        return value
    return min(max(value, -limit), limit)


@njit(**LOOP)
def find_few(tile: Any, order: Any, kept: Any, places: Any) -> None:
    """Finds the largest magnitudes of every column, by descending magnitude, the first among equals before others.

    Args:
        tile: (chunk, columns) float32.
        order: (chunk,), the row of each coefficient.
        kept: how many; at most `FEW`.
        places: (FEW, columns) int32, whose they are; may have more than are kept.
    """
    for column in range(0, tile.shape[1], LANES):
        if kept == 1:
            find_one(tile, order, column, places)
        elif kept == 2:
            find_two(tile, order, column, places)
        elif kept <= 4:
            find_four(tile, order, column, places)
        elif kept <= 8:
            find_eight(tile, order, column, places)
        elif kept <= 16:
            find_sixteen(tile, order, column, places)
        else:
            find_all_few(tile, order, column, places)


@njit(**LOOP)
def take_few(
    tile: Any, column: Any, order: Any, places: Any, kept: Any, limit: Any, slot: Any, out: Any, marks: Any
) -> None:
    """Writes a few coefficients of a column by ascending index, from a slot on; `marks` has a bit for each."""
    indices, values = out
    marks[:] = 0
    for j in range(kept):
        place = U64(places[j, column])
        marks[place >> U64(6)] |= U64(1) << (place & U64(63))
    for word in range(marks.size):
        rest = marks[word]
        while rest:
            place = U64(64 * word) + U64(lowest_bit(rest))
            rest &= rest - U64(1)
            indices[slot] = place
            values[slot] = limited(tile[U64(order[place]), U64(column)], limit)
            slot += 1


@njit(**LOOP)
def take_many(coefficients: Any, limit: Any, step: Any, low: Any, indices: Any, values: Any) -> Any:
    """Writes the largest of a chunk's coefficients; returns a guess at what the next chunk's reach."""
    kept = (indices.size, 0)
    bits, out = coefficients.view(np.uint32), values.view(np.uint32)
    low = select_from(bits, MAGNITUDE, step, coefficients.size, kept, indices, out, low)
    for j in range(values.size):
        values[j] = limited(values[j], limit)
    return low


@njit(**LOOP)
def encode_cosines(
    x: Any, backward: Any, network: Any, bounds: Any, kept: Any, step: Any, message: Any
) -> None:
    """Moves the strongest waves of every chunk of `x` to the message, a tile at a time, while it is in cache.

    Args:
        x: float32.
        backward: (chunk, chunk); row j is the wave of coefficient j.
        network: pairs, weights and order of a `CosineNetwork`.
        bounds: `scale` of what is transformed, `largest` and `limit` as the reference has them.
        kept: waves per chunk.
        step: as for `_blocks.select_blocks`.
        message: uint16 indices within chunks, ascending, then float32 coefficients.
    """
    (pairs, weights, order), (scale, most, limit) = network, bounds
    chunk = order.size
    columns = TILE // chunk
    total = (x.size + chunk - 1) // chunk * kept
    indices, values = message[: 2 * total].view(np.uint16), message[2 * total :].view(np.float32)
    tile, places = np.empty((chunk, columns), np.float32), np.empty((FEW, columns), np.int32)
    coefficients, padded = np.empty(chunk, np.float32), np.zeros(TILE, np.float32)
    marks, low = np.zeros(chunk // 64, np.uint64), MAGNITUDE
    for first in range(0, x.size, TILE):
        here = x[first : first + TILE]
        if here.size < TILE:
            padded[: here.size] = here
            here = padded
        fill_tile(here, scale, tile)
        rotate(tile, pairs, weights)
        if kept <= FEW:
            find_few(tile, order, kept, places)
        has_large = exceeds(here, most)
        chunks = (min(TILE, x.size - first) + chunk - 1) // chunk
        start = first // chunk * kept
        for column in range(chunks):
            slot = start + column * kept
            if has_large and exceeds_alone(here[column * chunk : (column + 1) * chunk], most):
                for j in range(kept):
                    indices[slot + j], values[slot + j] = j, F32(0)
            elif kept <= FEW:
                take_few(tile, column, order, places, kept, limit, slot, (indices, values), marks)
            else:
                for j in range(chunk):
                    coefficients[j] = tile[order[j], column]
                end = slot + kept
                low = take_many(coefficients, limit, step, low, indices[slot:end], values[slot:end])
        end = start + chunks * kept
        decode_cosines(indices[start:end], values[start:end], backward, kept, x[first : first + TILE], -1)


@njit(**LOOP)
def exceeds(here: Any, largest: Any) -> Any:
    """Whether any magnitude is beyond `largest`, or not finite."""
    most = U32(0)
    bits = here.view(np.uint32)
    for i in range(bits.size):
        most = max(most, U32(bits[i] & MAGNITUDE))
    return not float_of(most) <= largest


@njit(**LOOP)
def exceeds_alone(here: Any, largest: Any) -> Any:
    """Whether a chunk is finite, and a magnitude in it beyond `largest`."""
    most = U32(0)
    bits = here.view(np.uint32)
    for i in range(bits.size):
        most = max(most, U32(bits[i] & MAGNITUDE))
    return most < INFINITY and float_of(most) > largest


@njit(**LOOP)
def ascend(indices: Any, kept: Any, chunk: Any) -> Any:
    """Whether the indices of every chunk ascend strictly within it."""
    for slot in range(0, indices.size, kept):
        previous: Any = -1
        for j in range(slot, slot + kept):
            index = np.int64(indices[j])
            if index <= previous:
                return False
            previous = index
        if previous >= chunk:
            return False
    return True


@njit(**LOOP)
def decode_cosines(indices: Any, values: Any, backward: Any, kept: Any, out: Any, how: Any) -> None:
    """Writes (`how` = 0), adds (1) or subtracts (-1) the waves of a message.

    Args:
        indices: uint16, within chunks; ascending, `kept` per chunk.
        values: float32 coefficients.
        backward: (chunk, chunk); row j is the wave of coefficient j.
        kept: coefficients per chunk.
        out: float32.
        how: they meet `out`.
    """
    chunk = backward.shape[0]
    total = np.empty(chunk, np.float32)
    for first in range(0, out.size, chunk):
        here = out[first : first + chunk]
        total[:] = F32(0)
        slot = first // chunk * kept
        for j in range(slot, slot + kept):
            value, wave = values[j], backward[indices[j]]
            for i in range(chunk):
                total[i] += value * wave[i]
        if how == 0:
            here[:] = total[: here.size]
        elif how == 1:
            for i in range(here.size):
                here[i] += total[i]
        else:
            for i in range(here.size):
                here[i] -= total[i]
