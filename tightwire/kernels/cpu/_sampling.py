"""Loops that draw elements at random, larger ones more often."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import F32, LARGEST, LOOP, MAGNITUDE, U32, random_bits


@njit(**LOOP)
def histogram(bits: Any, shift: Any, counts: Any) -> None:
    """Counts float32 by the leading bits of their magnitudes; two tables, so that equals need not wait."""
    first, second = counts[0], counts[1]
    even = bits.size - bits.size % 2
    for i in range(0, even, 2):
        first[(bits[i] & MAGNITUDE) >> shift] += 1
        second[(bits[i + 1] & MAGNITUDE) >> shift] += 1
    if even < bits.size:
        first[(bits[even] & MAGNITUDE) >> shift] += 1


@njit(**LOOP)
def sample_by_magnitude(x: Any, scale: Any, start: Any, one: Any, message: Any) -> None:
    """Moves elements that are drawn with a probability of min(1, scale·|x| / one) to the message, divided by that.

    Args:
        x: finite float32; keeps what the message does not carry.
        scale: of magnitudes, to probabilities in units of 1/one.
        start: of the systematic draw, below `one`.
        one: the unit, a power of two.
        message: int32 count, k int32 indices, k values; unused places are zero.
    """
    k = (message.size - 4) // 8
    indices = message[4 : 4 + 4 * k].view(np.int32)
    values = message[4 + 4 * k :].view(np.float32)
    most = np.float64(one - 1)
    left, count = one - start, 0
    for i in range(x.size):
        magnitude = np.float64(abs(x[i]))
        probability: Any = np.int64(min(scale * magnitude, most)) + 1
        if magnitude == 0:
            probability = 0
        left -= probability
        if left <= 0:
            left += one
            value = np.float64(x[i]) * (np.float64(one) / np.float64(probability))
            sent = F32(min(max(value, -np.float64(LARGEST)), np.float64(LARGEST)))
            indices[count], values[count] = i, sent
            x[i] -= sent
            count += 1
    indices[count:] = 0
    values[count:] = 0
    message[:4].view(np.int32)[0] = count


@njit(**LOOP)
def shared_indices(numel: Any, keys: Any, out: Any) -> None:
    """Writes ascending places, one drawn from each of `out.size` stretches of equal length."""
    first = 0
    for j in range(out.size):
        end = (j + 1) * numel // out.size
        drawn = np.uint64(random_bits(U32(j), keys[0], keys[1])) * np.uint64(end - first)
        out[j] = first + np.int64(drawn >> np.uint64(32))
        first = end
