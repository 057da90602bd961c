"""Loops that select the largest magnitudes of every block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import LOOP, lowest_bit, reaching
from tightwire.kernels.cpu._sparse import GROUP, kth_largest

# Elements that share a maximum while the largest of a block are taken one by one.
PART = 32
# Beyond this many of a block, histograms are faster.
FEW = 48


@njit(**LOOP)
def largest(part: Any, mask: Any) -> Any:
    """Returns the largest magnitude of a part."""
    best = part[0] & mask
    for i in range(1, part.size):
        best = max(best, part[i] & mask)
    return best


@njit(**LOOP)
def select_blocks(a: Any, mask: Any, step: Any, block: Any, kept: Any, message: Any) -> None:
    """Moves the largest magnitudes of every block to the message, the lowest indices among equals.

    Args:
        a: unsigned bits of the tensor.
        mask: all of its bits but the sign, of its dtype.
        step: an eighth of the distance to twice a magnitude, in its bits.
        block: elements of a block, at most 65,536, a multiple of 64; the last one may have fewer.
        kept: of a whole block, and of the last one.
        message: uint16 indices within blocks, ascending, then the values.
    """
    total = a.size // block * kept[0] + kept[1]
    indices = message[: 2 * total].view(np.uint16)
    values = message[2 * total :].view(a.dtype)
    select_from(a, mask, step, block, kept, indices, values, a.dtype.type(mask))


@njit(**LOOP)
def select_from(
    a: Any, mask: Any, step: Any, block: Any, kept: Any, indices: Any, values: Any, low: Any
) -> Any:
    """Does what `select_blocks` says, with a guess at what the largest reach; returns a guess for blocks to come."""
    maxima = np.empty(block // PART + 1, a.dtype)
    found, found_values = np.empty(4 * FEW + 2 * GROUP, np.int64), np.empty(8 * FEW + 2 * GROUP, a.dtype)
    slot = 0
    for first in range(0, a.size, block):
        here = a[first : first + block]
        k = kept[0] if here.size == block else kept[1]
        if k > FEW:
            take_many(here, mask, k, indices[slot : slot + k], values[slot : slot + k])
        elif k > 0:
            count = near(here, mask, low, found, found_values) if here.size == block else 0
            if k <= count <= 4 * FEW:
                take_near(here, k, (found, found_values), count, mask, indices[slot:], values[slot:])
            else:
                take_few(here, mask, indices[slot : slot + k], values[slot : slot + k], maxima)
            low = next_low(values[slot : slot + k], mask, low, step)
        slot += k
    return low


@njit(**LOOP)
def near(here: Any, mask: Any, low: Any, found: Any, found_values: Any) -> Any:
    """Lists the elements of a block that reach `low`; returns how many, or more than fit."""
    count = 0
    for first in range(0, here.size, GROUP):
        hits = reaching(here, first, mask, low)
        while hits:
            i = first + lowest_bit(hits)
            found[count], found_values[count] = i, here[i]
            count += 1
            hits &= hits - np.uint64(1)
        if count > 4 * FEW:
            return count
    return count


@njit(**LOOP)
def take_near(here: Any, k: Any, listed: Any, count: Any, mask: Any, indices: Any, values: Any) -> None:
    """Moves the k largest of those that were listed: those that fewer than k others come before."""
    found, found_values = listed
    magnitudes = found_values[count : 2 * count]
    for j in range(count):
        magnitudes[j] = found_values[j] & mask
    slot = 0
    for j in range(count):
        if slot < k and rank_of(magnitudes, j) < k:
            indices[slot], values[slot] = found[j], found_values[j]
            here[found[j]] = 0
            slot += 1


@njit(**LOOP)
def rank_of(magnitudes: Any, j: Any) -> Any:
    """Returns how many come before the j-th: the larger ones, and equals of lower index."""
    own = magnitudes[j]
    before = magnitudes.dtype.type(0)
    for i in range(j):
        before += magnitudes[i] >= own
    for i in range(j + 1, magnitudes.size):
        before += magnitudes[i] > own
    return before


@njit(**LOOP)
def next_low(values: Any, mask: Any, low: Any, step: Any) -> Any:
    """Returns a magnitude that the largest of the next block should reach: somewhat below what they were so far."""
    least = mask
    for j in range(values.size):
        least = min(least, values[j] & mask)
    target = least - min(least, step)
    return target if low == mask else low - (low >> 2) + (target >> 2)  # a mean that follows


@njit(**LOOP)
def take_many(here: Any, mask: Any, k: Any, indices: Any, values: Any) -> None:
    """Moves the k largest of a block by histograms."""
    threshold, num_larger = kth_largest(here, mask, k)
    ties = k - num_larger
    slot = 0
    for i in range(here.size):
        magnitude = np.uint64(here[i] & mask)
        if magnitude > threshold or (magnitude == threshold and ties > 0):
            ties -= magnitude == threshold
            indices[slot] = i
            values[slot] = here[i]
            here[i] = 0
            slot += 1


@njit(**LOOP)
def take_few(here: Any, mask: Any, indices: Any, values: Any, maxima: Any) -> None:
    """Moves the largest of a block one by one, each from the part that has the largest maximum."""
    num_parts = (here.size + PART - 1) // PART
    for part in range(num_parts):
        maxima[part] = largest(here[part * PART : (part + 1) * PART], mask)
    for taken in range(indices.size):
        part, best = 0, maxima[0]
        for other in range(1, num_parts):
            if maxima[other] > best:
                part, best = other, maxima[other]
        if best == 0:
            take_zeros(here, mask, indices, values, taken)
            return
        i = part * PART
        while here[i] & mask != best:
            i += 1
        insert(i, here[i], taken, indices, values)
        here[i] = 0
        maxima[part] = largest(here[part * PART : (part + 1) * PART], mask)


@njit(**LOOP)
def take_zeros(here: Any, mask: Any, indices: Any, values: Any, taken: Any) -> None:
    """Fills the places that are left with the first elements that were zero from the start."""
    i = 0
    while taken < indices.size:
        is_taken = False
        for j in range(taken):
            is_taken |= indices[j] == i
        if not is_taken:
            insert(i, here[i], taken, indices, values)
            here[i] = 0
            taken += 1
        i += 1


@njit(**LOOP)
def insert(i: Any, value: Any, taken: Any, indices: Any, values: Any) -> None:
    """Puts an index and its value where they belong among the ascending ones."""
    slot = taken
    while slot > 0 and indices[slot - 1] > i:
        indices[slot], values[slot] = indices[slot - 1], values[slot - 1]
        slot -= 1
    indices[slot], values[slot] = i, value


@njit(**LOOP)
def flat_indices(message: Any, numel: Any, block: Any, kept: Any, flat: Any) -> Any:
    """Writes where in the tensor the elements of a message lie; False if an index cannot be."""
    total = numel // block * kept[0] + kept[1]
    indices = message[: 2 * total].view(np.uint16)
    slot = 0
    for first in range(0, numel, block):
        size = min(block, numel - first)
        previous: Any = -1
        for _ in range(kept[0] if size == block else kept[1]):
            index = np.int64(indices[slot])
            if index <= previous or index >= size:
                return False
            previous = index
            flat[slot] = first + index
            slot += 1
    return True
