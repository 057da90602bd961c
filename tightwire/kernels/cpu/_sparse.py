"""Loops that select the largest magnitudes without sorting.

A float's bits without its sign order as its magnitude does, with infinity and then NaN on top. So these loops
work on unsigned integers, alike for every float format, and what cannot be averaged is always sent.

The k-th largest magnitude is found from histograms of its digits. To touch a large tensor once only, a sample
first gives a magnitude that slightly more than k elements should reach; one pass collects those; the exact
answer is found among them. Whatever the sample says, the result is exact: when too few or too many are
collected, the histograms are taken over the whole tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import LOOP, U32, lowest_bit, random_bits, reaching

DIGIT_BITS = 11
# Below this many elements sampling costs more than it saves.
SMALL = 1024
MOST_SAMPLES = 1 << 16
# Elements looked at together: as many as an integer has bits.
GROUP = 64


@njit(**LOOP)
def kth_largest(a: Any, mask: Any, k: Any) -> Any:
    """Returns the k-th largest magnitude in `a`, and how many are strictly larger."""
    mask64 = np.uint64(mask)
    remaining: Any = 0
    while mask64 >> np.uint64(remaining):
        remaining += 1
    counts = np.empty(1 << DIGIT_BITS, np.int64)
    prefix = np.uint64(0)
    wanted = k
    while remaining > 0:
        width = np.uint64(min(DIGIT_BITS, remaining))
        remaining -= np.int64(width)
        digit = np.uint64((np.uint64(1) << width) - np.uint64(1))
        counts[:] = 0
        for i in range(a.size):
            head = (np.uint64(a[i]) & mask64) >> np.uint64(remaining)
            if (head >> width) == prefix:
                counts[head & digit] += 1
        value = np.int64(digit)
        while counts[value] < wanted:
            wanted -= counts[value]
            value -= 1
        prefix = np.uint64((prefix << width) | np.uint64(value))
    return prefix, k - wanted


@njit(**LOOP)
def estimate(a: Any, mask: Any, k: Any, sample: Any) -> Any:
    """Returns a magnitude that, most likely, k elements and not many more reach.

    One element is taken from each of `sample.size` equal stretches, at a place that the stretch's number
    decides, so that no row length resonates with the sampling.
    """
    stretch = a.size // sample.size
    for i in range(sample.size):
        place = (np.uint64(random_bits(U32(i), U32(0), U32(0))) * np.uint64(stretch)) >> np.uint64(32)
        sample[i] = a[i * stretch + np.int64(place)] & mask
    expected = k * sample.size / a.size
    rank = int(expected + 3 * np.sqrt(expected) + 4)
    if rank >= sample.size:
        return np.uint64(0)
    return kth_largest(sample, mask, rank)[0]


@njit(**LOOP)
def collect(a: Any, mask: Any, low: Any, indices: Any, values: Any) -> Any:
    """Moves the elements that reach `low` to lists, by ascending index.

    They are cleared while their cache line is at hand; whoever finds later that one is not sent puts it back.

    Returns:
        How many there are, or -1, with nothing moved, if they do not fit.
    """
    count = 0
    whole = a.size - a.size % GROUP
    for first in range(0, whole, GROUP):
        if count > indices.size - 2 * GROUP:  # room for this group and for the rest after the last
            put_back(a, indices[:count], values)
            return -1
        hits = reaching(a, first, mask, low)
        while hits:
            move(a, first + lowest_bit(hits), count, indices, values)
            count += 1
            hits &= hits - np.uint64(1)
    for i in range(whole, a.size):
        if a.dtype.type(a[i] & mask) >= low:
            move(a, i, count, indices, values)
            count += 1
    return count


@njit(**LOOP)
def move(a: Any, i: Any, slot: Any, indices: Any, values: Any) -> None:
    """Moves one element out of `a`."""
    indices[slot] = i
    values[slot] = a[i]
    a[i] = 0


@njit(**LOOP)
def put_back(a: Any, indices: Any, values: Any) -> None:
    """Undoes what moved these elements out of `a`."""
    for j in range(indices.size):
        a[indices[j]] = values[j]


@njit(**LOOP)
def send_all(a: Any, mask: Any, k: Any, indices: Any, values: Any) -> None:
    """Sends the k largest by histograms over the whole of `a`."""
    threshold, num_larger = kth_largest(a, mask, k)
    ties = k - num_larger
    slot = 0
    for i in range(a.size):
        magnitude = np.uint64(a[i] & mask)
        if magnitude > threshold or (magnitude == threshold and ties > 0):
            ties -= magnitude == threshold
            move(a, i, slot, indices, values)
            slot += 1


@njit(**LOOP)
def send_found(a: Any, mask: Any, k: Any, message: Any, found: Any, found_values: Any) -> None:
    """Sends the k largest of the elements that were collected, and puts the others back."""
    indices, values = message
    threshold, num_larger = kth_largest(found_values, mask, k)
    ties = k - num_larger
    slot = 0
    for j in range(found_values.size):
        magnitude = np.uint64(found_values[j] & mask)
        if magnitude > threshold or (magnitude == threshold and ties > 0):
            ties -= magnitude == threshold
            indices[slot] = found[j]
            values[slot] = found_values[j]
            slot += 1
        else:
            a[found[j]] = found_values[j]


@njit(**LOOP)
def select_largest(a: Any, mask: Any, k: Any, message: Any) -> None:
    """Moves the k largest magnitudes to the message, the lowest indices among equals.

    Args:
        a: unsigned bits of the tensor.
        mask: all of its bits but the sign, of its dtype.
        k: how many; 1 ≤ k ≤ a.size.
        message: k int32 indices, ascending, then k values.
    """
    indices = message[: 4 * k].view(np.int32)
    values = message[4 * k :].view(a.dtype)
    if a.size >= SMALL and k <= a.size // 2:
        sample = np.empty(min(a.size // 16, MOST_SAMPLES), a.dtype)
        low = a.dtype.type(estimate(a, mask, k, sample))
        room = min(a.size, 2 * k + 16 * a.size // sample.size) + 2 * GROUP
        found, found_values = np.empty(room, np.int32), np.empty(room, a.dtype)
        count = collect(a, mask, low, found, found_values)
        if count >= k:
            send_found(a, mask, k, (indices, values), found[:count], found_values[:count])
            return
        put_back(a, found[: max(count, 0)], found_values)
    send_all(a, mask, k, indices, values)


@njit(**LOOP)
def in_range(message: Any, k: Any, numel: Any) -> Any:
    """Whether the k indices of a message ascend strictly within a tensor of `numel` elements."""
    indices = message[: 4 * k].view(np.int32)
    previous = -1
    for j in range(k):
        if indices[j] <= previous:
            return False
        previous = indices[j]
    return previous < numel


@njit(**LOOP)
def select_above(a: Any, mask: Any, low: Any, k: Any, message: Any) -> None:
    """Moves the magnitudes of at least `low` to the message; of more than k, the k largest.

    Args:
        a: unsigned bits of the tensor.
        mask: all of its bits but the sign, of its dtype.
        low: bits of the threshold, of its dtype.
        k: places of the message; 1 ≤ k ≤ a.size.
        message: int32 count, k int32 indices, ascending, k values; unused places are zero.
    """
    indices = message[4 : 4 + 4 * k].view(np.int32)
    values = message[4 + 4 * k :].view(a.dtype)
    found, found_values = np.empty(k + 3 * GROUP, np.int32), np.empty(k + 3 * GROUP, a.dtype)
    count = collect(a, mask, low, found, found_values)
    if 0 <= count <= k:
        indices[:count] = found[:count]
        values[:count] = found_values[:count]
        indices[count:] = 0
        values[count:] = 0
    else:
        put_back(a, found[: max(count, 0)], found_values)
        select_largest(a, mask, k, message[4:])
        count = k
    message[:4].view(np.int32)[0] = count


@njit(**LOOP)
def counted(message: Any, k: Any, numel: Any) -> Any:
    """Returns how many places of a message are used, or -1 if its count or an index cannot be."""
    count = message[:4].view(np.int32)[0]
    if count < 0 or count > k or not in_range(message[4:], count, numel):
        return -1
    return count


@njit(**LOOP)
def scatter(message: Any, values: Any, out: Any, k: Any, add: Any) -> None:
    """Writes (zeros elsewhere) or adds the k values at their indices."""
    indices = message[: 4 * k].view(np.int32)
    if add:
        for j in range(k):
            out[indices[j]] += values[j]
    else:
        out[:] = 0
        for j in range(k):
            out[indices[j]] = values[j]
