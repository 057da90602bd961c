"""Loops that sort bytes by their place in an element."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import LOOP


@njit(**LOOP)
def split(bits: Any, planes: Any) -> None:
    """Writes the lowest bytes of all elements, then the next ones, up to the highest."""
    for place in range(bits.itemsize):
        plane = planes[place * bits.size : (place + 1) * bits.size]
        shift = bits.dtype.type(8 * place)
        for i in range(bits.size):
            plane[i] = np.uint8(bits[i] >> shift)


@njit(**LOOP)
def join(planes: Any, bits: Any) -> None:
    """Is the inverse of `split`."""
    bits[:] = 0
    for place in range(bits.itemsize):
        plane = planes[place * bits.size : (place + 1) * bits.size]
        shift = bits.dtype.type(8 * place)
        for i in range(bits.size):
            bits[i] |= bits.dtype.type(plane[i]) << shift
