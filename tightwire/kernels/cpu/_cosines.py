"""Loops that turn chunks into cosines and back.

Sums are taken one product after the other, without fused multiplications, so that every device gets the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import F32, INFINITY, LOOP, MAGNITUDE, U32, float_of
from tightwire.kernels.cpu._blocks import select_from

# Chunks whose coefficients are held at a time.
TILE = 32


@njit(**LOOP)
def cosine_transform(x: Any, forward: Any, largest: Any, limit: Any, coefficients: Any) -> None:
    """Writes the coefficients of every chunk of `x`, the last one filled up with zeros.

    Args:
        x: float32.
        forward: (chunk, chunk); row i is what an element at place i adds to the coefficients; chunk is even.
        largest: a chunk with a finite magnitude beyond it has no coefficients.
        limit: what finite coefficients are cut to.
        coefficients: whole chunks of float32; overwritten.
    """
    chunk = forward.shape[0]
    padded = np.zeros(chunk, np.float32)
    total = np.empty(chunk, np.float32)
    for first in range(0, coefficients.size, chunk):
        here = x[first : first + chunk]
        if here.size < chunk:
            padded[: here.size] = here
            here = padded
        total[:] = F32(0)
        for i in range(0, chunk, 4):
            a, b, c, d = here[i], here[i + 1], here[i + 2], here[i + 3]
            fa, fb, fc, fd = forward[i], forward[i + 1], forward[i + 2], forward[i + 3]
            for j in range(chunk):
                total[j] = total[j] + a * fa[j] + b * fb[j] + c * fc[j] + d * fd[j]
        out = coefficients[first : first + chunk]
        if exceeds(here, largest):
            total[:] = F32(0)
        for j in range(chunk):
            out[j] = limited(total[j], limit)


@njit(**LOOP)
def exceeds(here: Any, largest: Any) -> Any:
    """Whether a chunk is finite, and a magnitude in it beyond `largest`."""
    most = U32(0)
    bits = here.view(np.uint32)
    for i in range(bits.size):
        most = max(most, U32(bits[i] & MAGNITUDE))
    return most < INFINITY and float_of(most) > largest


@njit(**LOOP)
def limited(value: Any, limit: Any) -> Any:
    """Returns a value cut to a limit; one that is not finite stays so."""
    if not np.isfinite(value):
        return value
    return min(max(value, -limit), limit)


@njit(**LOOP)
def encode_cosines(x: Any, waves: Any, bounds: Any, kept: Any, step: Any, message: Any) -> None:
    """Moves the strongest waves of every chunk of `x` to the message, some chunks at a time, while they are in cache.

    Args:
        x: float32.
        waves: `forward` and `backward`, as for the two directions.
        bounds: `largest` and `limit`, as for `cosine_transform`.
        kept: waves per chunk.
        step: as for `blocks.select_blocks`.
        message: uint16 indices within chunks, ascending, then float32 coefficients.
    """
    forward, backward = waves
    chunk = forward.shape[0]
    total = (x.size + chunk - 1) // chunk * kept
    indices, values = message[: 2 * total].view(np.uint16), message[2 * total :].view(np.uint32)
    room = np.empty(TILE * chunk, np.float32)
    low = MAGNITUDE
    for first in range(0, x.size, TILE * chunk):
        here = x[first : first + TILE * chunk]
        chunks = (here.size + chunk - 1) // chunk
        coefficients = room[: chunks * chunk]
        cosine_transform(here, forward, bounds[0], bounds[1], coefficients)
        slots = slice(first // chunk * kept, (first // chunk + chunks) * kept)
        bits = coefficients.view(np.uint32)
        low = select_from(bits, MAGNITUDE, step, chunk, (kept, 0), indices[slots], values[slots], low)
        decode_cosines(indices[slots], values[slots].view(np.float32), backward, kept, here, -1)


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
