"""Loops between floats and integers of a shared step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import F32, LOOP, MAGNITUDE, U32, random_unit


@njit(**LOOP)
def largest_bits(bits: Any) -> Any:
    """Returns the largest bits without the sign; compiled as 32-bit integers of whole vectors."""
    found = U32(0)
    for i in range(bits.size):
        found = max(found, bits[i] & MAGNITUDE)
    return found


@njit(**LOOP)
def encode_nearest(x: Any, codes: Any, step: Any, inverse: Any, top: Any) -> None:
    """Rounds to the nearest multiple, ties to even; `x` keeps the difference."""
    for i in range(x.size):
        rounded = min(max(np.rint(x[i] * inverse), -top), top)
        codes[i] = np.int32(rounded)
        x[i] -= rounded * step


@njit(**LOOP)
def encode_stochastic(x: Any, codes: Any, step: Any, inverse: Any, top: Any, keys: Any) -> None:
    """Rounds up with a probability equal to the fraction; `x` keeps the difference."""
    for i in range(x.size):
        unit = random_unit(U32(i), keys[0], keys[1])
        rounded = min(max(np.floor(x[i] * inverse + unit), -top), top)
        codes[i] = np.int32(rounded)
        x[i] -= rounded * step


@njit(**LOOP)
def decode(sums: Any, out: Any, step: Any) -> None:
    """Writes multiples."""
    for i in range(out.size):
        out[i] = F32(sums[i]) * step
