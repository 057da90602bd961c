"""Loops that send elements as positions with a sign: four bytes each, one magnitude for all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import (
    F32,
    LOOP,
    MAGNITUDE,
    U32,
    float_of,
    lowest_bit,
    random_bits,
    reaching,
)
from tightwire.kernels.cpu._sparse import GROUP, MOST_SAMPLES, SMALL, kth_largest

SIGN = U32(0x80000000)


@njit(**LOOP)
def encode_sparse_signs(x: Any, indices: Any, values: Any, magnitude: Any, message: Any) -> None:
    """Writes positions with the signs of their values, and leaves in `x` what those have beyond the magnitude.

    Args:
        x: float32.
        indices: int32, ascending.
        values: float32, one per index.
        magnitude: float32, that all are sent as.
        message: int32 places, at least as many as indices; the unused ones are cleared.
    """
    entries = message.view(np.uint32)
    bits = values.view(np.uint32)
    for j in range(indices.size):
        negative = bits[j] & SIGN
        entries[j] = U32(indices[j]) | negative
        x[indices[j]] = values[j] + magnitude if negative else values[j] - magnitude
    entries[indices.size :] = 0


@njit(**LOOP)
def decode_sparse_signs(entries: Any, magnitude: Any, out: Any, add: Any) -> Any:
    """Writes or adds ± a magnitude at marked positions; False, with nothing done, if these do not ascend within."""
    previous: Any = -1
    for j in range(entries.size):
        index = np.int64(entries[j] & MAGNITUDE)
        if index <= previous or index >= out.size:
            return False
        previous = index
    if not add:
        out[:] = 0
    for j in range(entries.size):
        value = -magnitude if entries[j] & SIGN else magnitude
        index = np.int64(entries[j] & MAGNITUDE)
        out[index] = out[index] + value if add else value
    return True


@njit(**LOOP)
def mean_magnitude(values: Any) -> Any:
    """Returns the mean magnitude of float32, as one; 0 of none, NaN if one is not finite."""
    if values.size == 0:
        return F32(0)
    total, finite = 0.0, True
    for j in range(values.size):
        finite &= np.isfinite(values[j])
        total += np.float64(abs(values[j]))
    return F32(total / values.size) if finite else F32(np.nan)


@njit(**LOOP)
def select_dominant_sign(a: Any, k: Any, indices: Any, values: Any) -> Any:
    """Lists the k largest elements of the sign whose k largest have the larger mean; `a` stays as it is.

    Args:
        a: uint32 bits of float32.
        k: at most how many; zeros are none of them.
        indices: (k,) int32, ascending.
        values: (k,) uint32 bits.

    Returns:
        How many there are, -1 if `a` is not finite; their mean magnitude.
    """
    room = a.size
    if a.size >= SMALL and k <= a.size // 4:
        room = min(a.size, 2 * k + 16 * a.size // min(a.size // 16, MOST_SAMPLES)) + 2 * GROUP
    places, found = np.empty((2, room), np.int32), np.empty((2, room), np.uint32)
    counts = np.zeros(2, np.int64)
    if room == a.size or not collect_sides(a, k, places, found, counts):
        places, found = np.empty((2, a.size), np.int32), np.empty((2, a.size), np.uint32)
        split_sides(a, places, found, counts)
    above, below = most(found[0, : counts[0]], k), most(found[1, : counts[1]], k)
    if not (np.isfinite(above[2]) and np.isfinite(below[2])):
        return -1, 0.0
    side, chosen = (1, below) if below[2] > above[2] else (0, above)
    threshold, ties, mean = chosen
    slot = 0
    for j in range(counts[side]):
        magnitude = found[side, j]
        if magnitude > threshold or (magnitude == threshold and ties > 0):
            ties -= magnitude == threshold
            indices[slot] = places[side, j]
            values[slot] = magnitude | SIGN if side else magnitude
            slot += 1
    return slot, mean


@njit(**LOOP)
def most(magnitudes: Any, k: Any) -> Any:
    """Returns what the k largest reach, how many of those that just reach it are among them, and their mean."""
    wanted = min(k, magnitudes.size)
    if wanted == 0:
        return np.uint64(0), 0, F32(0)
    threshold, larger = kth_largest(magnitudes, MAGNITUDE, wanted)
    total = np.float64(float_of(U32(threshold))) * (wanted - larger)
    for j in range(magnitudes.size):
        if magnitudes[j] > threshold:
            total += np.float64(float_of(magnitudes[j]))
    return threshold, wanted - larger, F32(total / wanted)


@njit(**LOOP)
def collect_sides(a: Any, k: Any, places: Any, found: Any, counts: Any) -> Any:
    """Lists the elements that are large for their sign, by a sample; False if too few, or more than fit."""
    lows = np.empty(2, np.uint32)
    estimate_sides(a, k, lows)
    low = min(lows[0], lows[1])
    if low == 0:
        return False
    room = places.shape[1] - 2 * GROUP
    whole = a.size - a.size % GROUP
    for first in range(0, whole, GROUP):
        hits = reaching(a, first, MAGNITUDE, low)
        while hits:
            list_one(a, first + lowest_bit(hits), lows, places, found, counts)
            hits &= hits - np.uint64(1)
        if max(counts[0], counts[1]) > room:
            return False
    for i in range(whole, a.size):
        list_one(a, i, lows, places, found, counts)
    return min(counts[0], counts[1]) >= k


@njit(inline="always")
def list_one(a: Any, i: Any, lows: Any, places: Any, found: Any, counts: Any) -> None:
    """Lists an element if it is large for its sign."""
    side, magnitude = np.int64(a[i] >> U32(31)), a[i] & MAGNITUDE
    slot = counts[side]
    places[side, slot], found[side, slot] = i, magnitude
    counts[side] = slot + (magnitude >= lows[side])


@njit(**LOOP)
def split_sides(a: Any, places: Any, found: Any, counts: Any) -> None:
    """Lists all elements but zeros by their sign."""
    counts[:] = 0
    for i in range(a.size):
        side, magnitude = np.int64(a[i] >> U32(31)), a[i] & MAGNITUDE
        if magnitude:
            places[side, counts[side]], found[side, counts[side]] = i, magnitude
            counts[side] += 1


@njit(**LOOP)
def estimate_sides(a: Any, k: Any, lows: Any) -> None:
    """Writes, for either sign, a magnitude that most likely k of its elements and not many more reach; 0 if unsure."""
    size = min(a.size // 16, MOST_SAMPLES)
    samples = np.zeros((2, size), np.uint32)
    stretch = a.size // size
    for i in range(size):
        place = (np.uint64(random_bits(U32(i), U32(0), U32(0))) * np.uint64(stretch)) >> np.uint64(32)
        bits = a[i * stretch + np.int64(place)]
        samples[bits >> U32(31), i] = bits & MAGNITUDE
    expected = k * size / a.size
    rank = int(expected + 3 * np.sqrt(expected) + 4)
    for side in range(2):
        lows[side] = kth_largest(samples[side], MAGNITUDE, rank)[0] if rank < size else 0
