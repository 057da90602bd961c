"""Loops that draw elements at random, larger ones more often."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels._sampling import LOG_ONE, ONE
from tightwire.kernels.cpu._bits import F32, LARGEST, LOOP, MAGNITUDE, U32, random_bits

U64 = np.uint64
# Elements whose probabilities are computed together.
TILE = 1024


@njit(**LOOP)
def histogram(bits: Any, shift: Any, counts: Any) -> None:
    """Counts float32 by the leading bits of their magnitudes; four tables, so that equals need not wait.

    Args:
        bits: uint32.
        shift: of magnitudes, to the place of their count.
        counts: (4, places) int32.
    """
    first, second, third, fourth = counts[0], counts[1], counts[2], counts[3]
    whole = bits.size - bits.size % 4
    for i in range(0, whole, 4):
        first[(bits[i] & MAGNITUDE) >> shift] += 1
        second[(bits[i + 1] & MAGNITUDE) >> shift] += 1
        third[(bits[i + 2] & MAGNITUDE) >> shift] += 1
        fourth[(bits[i + 3] & MAGNITUDE) >> shift] += 1
    for i in range(whole, bits.size):
        first[(bits[i] & MAGNITUDE) >> shift] += 1


@njit(**LOOP)
def probabilities(x: Any, scale: Any, most: Any, out: Any) -> None:
    """Writes 1 + ⌊min(scale·|x|, most)⌋ as int32, and 0 where x is 0."""
    for i in range(x.size):
        magnitude = np.float64(abs(x[i]))
        share = np.int32(min(scale * magnitude, most))
        out[i] = np.int32(share + np.int32(1)) if x[i] != F32(0) else np.int32(0)


@njit(**LOOP)
def sample_by_magnitude(x: Any, scale: Any, start: Any, message: Any) -> None:
    """Moves elements that are drawn with a probability of min(1, scale·|x| / ONE) to the message, divided by that.

    Args:
        x: finite float32; keeps what the message does not carry.
        scale: of magnitudes, to probabilities in units of 1/ONE.
        start: of the systematic draw, below ONE.
        message: int32 count, k int32 indices, k values; unused places are zero.
    """
    k = (message.size - 4) // 8
    indices = message[4 : 4 + 4 * k].view(np.int32)
    values = message[4 + 4 * k :].view(np.float32)
    shares, drawn = np.empty(TILE, np.int32), np.empty(TILE + 1, np.int32)
    most, limit = np.float64(ONE - 1), np.float64(LARGEST)
    total, count = U64(start), np.int64(0)
    for first in range(0, x.size, TILE):
        here = x[first : first + TILE]
        probabilities(here, scale, most, shares)
        # Every element is written where the whole number of the sum before it says, and stays there if it is the last
        # one of that number: the one by which the sum passes the next. So nothing branches.
        for i in range(here.size):
            drawn[total >> U64(LOG_ONE)] = np.int32(i)
            total += U64(U32(shares[i]))
        passed = np.int64(total >> U64(LOG_ONE))
        total &= U64(ONE - 1)
        for j in range(passed):
            i = drawn[j]
            value = np.float64(here[i]) * (np.float64(ONE) / np.float64(shares[i]))
            sent = F32(min(max(value, -limit), limit))
            indices[count + j], values[count + j] = first + i, sent
            here[i] -= sent
        count += passed
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
