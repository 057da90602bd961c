"""Loops that cast float32 to half-precision formats and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import LOOP, MAGNITUDE, U32, float_of, from_half, is_finite_bits, to_half

_U16 = np.uint16


@njit(**LOOP)
def encode_float16(x: Any, message: Any) -> None:
    """Writes `x` as float16; what is beyond its range becomes its largest value. `x` keeps the difference."""
    out = message.view(np.uint16)
    bits = x.view(np.uint32)
    for i in range(x.size):
        half = to_half(x[i])
        if (half & _U16(0x7FFF)) == _U16(0x7C00) and is_finite_bits(bits[i]):
            half = _U16(half - _U16(1))
        out[i] = half
        x[i] -= from_half(half)


@njit(**LOOP)
def decode_float16(message: Any, out: Any, add: Any) -> None:
    """Writes or adds the float16 values of a message."""
    halves = message.view(np.uint16)
    if add:
        for i in range(out.size):
            out[i] += from_half(halves[i])
    else:
        for i in range(out.size):
            out[i] = from_half(halves[i])


@njit(**LOOP)
def encode_bfloat16(x: Any, message: Any) -> None:
    """Writes `x` as bfloat16, to nearest even, saturating. `x` keeps the difference."""
    out = message.view(np.uint16)
    bits = x.view(np.uint32)
    for i in range(x.size):
        b = bits[i]
        magnitude = U32(b & MAGNITUDE)
        rounded = U32(U32(b + U32(U32(0x7FFF) + U32(U32(b >> U32(16)) & U32(1)))) >> U32(16))
        if magnitude >= U32(
            0x7F7F8000
        ):  # would round to infinity: keep the high half, which is the largest value
            rounded = U32(b >> U32(16))
        if magnitude > U32(0x7F800000):  # a NaN whose low half alone says so must stay one
            rounded = U32(rounded | U32(0x40))
        out[i] = _U16(rounded)
        x[i] -= float_of(U32(rounded << U32(16)))


@njit(**LOOP)
def decode_bfloat16(message: Any, out: Any, add: Any) -> None:
    """Writes or adds the bfloat16 values of a message."""
    halves = message.view(np.uint16)
    if add:
        for i in range(out.size):
            out[i] += float_of(U32(U32(halves[i]) << U32(16)))
    else:
        for i in range(out.size):
            out[i] = float_of(U32(U32(halves[i]) << U32(16)))
