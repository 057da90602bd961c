"""Loops that send one bit per element, and per block what a bit stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import F32, LOOP, MAGNITUDE, U32, float_of
from tightwire.kernels.cpu._uniform import fold, largest_bits, pack


@njit(**LOOP)
def mean_magnitude(block: Any, side: Any, count: Any, folded: Any) -> Any:
    """Returns the mean of |x| over the elements of one sign bit; over all for `side` = 2."""
    bits = block.view(np.uint32)
    share = F32(1) / F32(block.size)  # before the sum, which must not overflow
    for i in range(block.size):
        magnitude = float_of(U32(bits[i] & MAGNITUDE)) * share
        folded[i] = magnitude if side == 2 or U32(bits[i] >> U32(31)) == U32(side) else F32(0)
    width = 1
    while width < block.size:
        width *= 2
    folded[block.size : width] = F32(0)
    mean = F32(np.float64(fold(folded, width)) * (block.size / max(count, 1)))
    largest = float_of(largest_bits(bits))
    return largest if mean > largest else mean


@njit(**LOOP)
def encode_signs(x: Any, message: Any, block: Any, two_sided: Any) -> None:
    """Writes the scales and sign bits of every block of `x`, and leaves in `x` what they miss."""
    num_blocks = (x.size + block - 1) // block
    per_block = 2 if two_sided else 1
    scales = message[: 4 * per_block * num_blocks].view(np.float32)
    packed = message[4 * per_block * num_blocks :]
    codes = np.empty(block + 8, np.uint8)
    folded = np.empty(2 * block, np.float32)
    for b in range(num_blocks):
        here = x[b * block : (b + 1) * block]
        bits = here.view(np.uint32)
        num_negative: Any = 0
        for i in range(here.size):
            sign = np.uint8(U32(bits[i] >> U32(31)))
            codes[i] = sign
            num_negative += sign
        if two_sided:
            above = mean_magnitude(here, 0, here.size - num_negative, folded)
            below = mean_magnitude(here, 1, num_negative, folded)
            scales[2 * b], scales[2 * b + 1] = above, below
        else:
            above = mean_magnitude(here, 2, here.size, folded)
            below = above
            scales[b] = above
        for i in range(here.size):
            here[i] -= -below if codes[i] else above
        pack(codes, here.size, packed[b * block // 8 : (b * block + here.size + 7) // 8], 1)


@njit(**LOOP)
def decode_signs(message: Any, out: Any, block: Any, two_sided: Any, add: Any) -> None:
    """Writes or adds what each bit stands for."""
    num_blocks = (out.size + block - 1) // block
    per_block = 2 if two_sided else 1
    scales = message[: 4 * per_block * num_blocks].view(np.float32)
    packed = message[4 * per_block * num_blocks :]
    for b in range(num_blocks):
        here = out[b * block : (b + 1) * block]
        codes = packed[b * block // 8 : (b * block + here.size + 7) // 8]
        above, below = scales[per_block * b], -scales[per_block * b + per_block - 1]
        for plane in range(8):
            part = here[plane * codes.size : (plane + 1) * codes.size]
            place_signs(part, codes, np.uint8(1 << plane), above, below, add)


@njit(**LOOP)
def place_signs(part: Any, codes: Any, mask: Any, above: Any, below: Any, add: Any) -> None:
    """Writes or adds one plane of a block."""
    if add:
        for i in range(part.size):
            part[i] += below if codes[i] & mask else above
    else:
        for i in range(part.size):
            part[i] = below if codes[i] & mask else above
