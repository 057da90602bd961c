"""Loops that rotate blocks at random. Sums and differences of halves land side by side, so that all loops are alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import F32, LOOP, U32, bits_of, float_of, random_bits


@njit(**LOOP)
def turn(x: Any, first: Any, key: Any, second_key: Any) -> None:
    """Multiplies each element by its random sign."""
    for word in range(x.size // 32):
        bits = random_bits(U32((first >> 5) + word), key, second_key)
        here = x[32 * word : 32 * word + 32]
        for i in range(32):
            sign = U32(U32(bits >> U32(i)) << U32(31))
            here[i] = float_of(U32(bits_of(here[i]) ^ sign))


@njit(**LOOP)
def transform(x: Any, room: Any) -> None:
    """Multiplies `x`, of 2ⁿ elements, by the Hadamard matrix; `room` is as large."""
    half = x.size // 2
    here, there = x, room
    layers = 0
    width = x.size
    while width > 1:
        low, high = here[:half], here[half:]
        for i in range(half):
            there[2 * i] = low[i] + high[i]
            there[2 * i + 1] = low[i] - high[i]
        here, there = there, here
        layers += 1
        width //= 2
    if layers % 2:
        x[:] = room


@njit(**LOOP)
def rotate(x: Any, block: Any, keys: Any, other_keys: Any, back: Any) -> None:
    """Rotates every block in place, or rotates it back."""
    room = np.empty(min(block, x.size), np.float32)
    for first in range(0, x.size, block):
        here = x[first : first + block]
        space = room[: here.size]
        share = F32(1) / F32(here.size)
        for i in range(here.size):
            here[i] *= share
        if not back:
            turn(here, first, keys[0], keys[1])
        transform(here, space)
        turn(here, first, other_keys[0], other_keys[1])
        transform(here, space)
        if back:
            turn(here, first, keys[0], keys[1])
