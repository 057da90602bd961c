"""Loops that round blocks to a grid.

The scale of the next block is found while this one is rounded: memory then never waits for arithmetic, nor
arithmetic for memory, which is what makes these loops run at the speed of a copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import literal_unroll, njit

from tightwire.kernels.cpu._bits import (
    CEILING,
    F32,
    FLOOR,
    I32,
    INFINITY,
    LOOP,
    MAGNITUDE,
    ROUNDER,
    U32,
    bits_of,
    float_of,
    random_bits,
    random_unit,
)


@njit(**LOOP)
def largest_bits(bits: Any) -> Any:
    """Returns the bits of the largest magnitude; a NaN is larger than infinity, as its bits are."""
    largest = U32(0)
    for i in range(bits.size):
        largest = max(largest, U32(bits[i] & MAGNITUDE))
    return largest


@njit(**LOOP)
def fold(folded: Any, width: Any) -> Any:
    """Returns the sum of the first `width` elements, a power of two, by folding halves; overwrites its input.

    An order that every device can follow. Two foldings at once, which halves the trips through memory.
    """
    while width > 2:
        width //= 4
        for i in range(width):
            even = folded[i] + folded[2 * width + i]
            folded[i] = even + (folded[width + i] + folded[3 * width + i])
    return folded[0] + folded[1] if width == 2 else folded[0]


@njit(**LOOP)
def scaled_square(x: Any, inverse: Any) -> Any:
    """Returns (x · inverse)²."""
    scaled = x * inverse
    return scaled * scaled


@njit(**LOOP)
def euclidean_norm(block: Any, largest: Any, folded: Any) -> Any:
    """Returns the norm of a block, its squares summed by `fold`."""
    inverse = F32(1) / largest
    width = 4
    while width < block.size:
        width *= 2
    if width == block.size:  # the usual block: the first two foldings need no memory
        width //= 4
        a, b = block[:width], block[width : 2 * width]
        c, d = block[2 * width : 3 * width], block[3 * width :]
        for i in range(width):
            even = scaled_square(a[i], inverse) + scaled_square(c[i], inverse)
            folded[i] = even + (scaled_square(b[i], inverse) + scaled_square(d[i], inverse))
    else:
        for i in range(block.size):
            folded[i] = scaled_square(block[i], inverse)
        folded[block.size : width] = F32(0)
    # In float64, because square roots of float32 are not rounded alike everywhere.
    return F32(np.float64(largest) * np.sqrt(np.float64(fold(folded, width))))


@njit(**LOOP)
def round_nearest(block: Any, next_bits: Any, codes: Any, step: Any, inverse: Any, levels: Any) -> Any:
    """Rounds a block and leaves the differences; returns the largest magnitude's bits of `next_bits`."""
    top = F32(levels)
    largest = U32(0)
    for i in range(block.size):
        largest = max(largest, U32(next_bits[i] & MAGNITUDE))
        rounded = (block[i] * inverse + ROUNDER) - ROUNDER
        rounded = min(max(rounded, -top), top)
        codes[i] = np.uint8(I32(rounded + top))
        block[i] -= rounded * step
    return largest


@njit(**LOOP)
def round_stochastic(
    block: Any, next_bits: Any, codes: Any, step: Any, inverse: Any, levels: Any, first: Any, keys: Any
) -> Any:
    """Like `round_nearest`, but up with a probability equal to the fraction."""
    top = F32(levels)
    largest = U32(0)
    for i in range(block.size):
        largest = max(largest, U32(next_bits[i] & MAGNITUDE))
        unit = random_unit(U32(first + U32(i)), keys[0], keys[1])
        rounded = np.floor(block[i] * inverse + unit)
        rounded = min(max(rounded, -top), top)
        codes[i] = np.uint8(I32(rounded + top))
        block[i] -= rounded * step
    return largest


@njit(**LOOP)
def round_doubling(
    block: Any, next_bits: Any, codes: Any, step: Any, inverse: Any, levels: Any, first: Any, keys: Any
) -> Any:
    """Like `round_stochastic`, to levels that double: up to 1 from 2**(1 − levels), and 0."""
    largest = U32(0)
    top = I32(levels)
    # What to take from the bits of a float32 to have its level; and the lowest level above 0: its bits, its inverse.
    bottom = I32(I32(127 - levels) << I32(23))
    lowest = U32(U32(128 - levels) << U32(23))
    inverse_lowest = float_of(U32(U32(126 + levels) << U32(23)))
    for i in range(block.size):
        largest = max(largest, U32(next_bits[i] & MAGNITUDE))
        bits = bits_of(block[i] * inverse)
        magnitude = U32(bits & MAGNITUDE)
        random = random_bits(U32(first + U32(i)), keys[0], keys[1])
        # Every sum is cast, for numba widens those of int32, which halves what a vector holds. Levels are in units of
        # 2**-23: from the lowest on, by exponent and mantissa, whose carry is right on average; below, in proportion.
        above = I32(I32(magnitude) - bottom)
        below = I32(float_of(magnitude) * inverse_lowest * F32(2.0**23))
        exact = above if magnitude >= lowest else below
        level = min(I32(I32(exact + I32(random >> U32(9))) >> I32(23)), top)
        value = float_of(U32(I32(level << I32(23)) + bottom)) if level > I32(0) else F32(0)
        negative = bits > MAGNITUDE
        codes[i] = np.uint8(I32(top - level) if negative else I32(top + level))
        block[i] -= (-value if negative else value) * step
    return largest


@njit(**LOOP)
def pack(codes: Any, numel: Any, out: Any, bits: Any) -> None:
    """Packs the codes of a block, planes of consecutive elements side by side in a byte."""
    w = out.size
    codes[numel : w * (8 // bits)] = np.uint8(0)
    # A loop for each, because shifts by a constant are what vectorises.
    if bits == 4:
        for i in range(w):
            out[i] = np.uint8(codes[i] | np.uint8(codes[w + i] << np.uint8(4)))
    elif bits == 2:
        for i in range(w):
            low = np.uint8(codes[i] | np.uint8(codes[w + i] << np.uint8(2)))
            high = np.uint8(codes[2 * w + i] | np.uint8(codes[3 * w + i] << np.uint8(2)))
            out[i] = np.uint8(low | np.uint8(high << np.uint8(4)))
    else:
        for i in range(w):
            byte = codes[i]
            for plane in literal_unroll((1, 2, 3, 4, 5, 6, 7)):
                byte = np.uint8(byte | np.uint8(codes[plane * w + i] << np.uint8(plane)))
            out[i] = byte


@njit(**LOOP)
def quantise(
    x: Any,
    message: Any,
    block: Any,
    bits: Any,
    levels: Any,
    l2: Any,
    clip: Any,
    stochastic: Any,
    doubling: Any,
    keys: Any,
) -> None:
    """Writes the steps and codes of every block of `x`, and leaves in `x` what they miss."""
    numel = x.size
    num_blocks = (numel + block - 1) // block
    steps = message[: 4 * num_blocks].view(np.float32)
    packed = message[4 * num_blocks :]
    all_bits = x.view(np.uint32)
    codes = np.empty(block + 8, np.uint8)
    folded = np.empty(2 * block, np.float32)
    nothing = np.zeros(block, np.uint32)
    largest = largest_bits(all_bits[:block])
    for b in range(num_blocks):
        first = b * block
        here = x[first : first + block]
        next_bits = all_bits[first + block : first + 2 * block]
        out = packed[first * bits // 8 : (first * bits + here.size * bits + 7) // 8]
        target = out if bits == 8 else codes
        if largest >= INFINITY:
            steps[b] = F32(np.nan)
            target[: here.size] = np.uint8(levels)
            here[:] = F32(np.nan)
            largest = largest_bits(next_bits)
        else:
            scale = float_of(largest)
            if (l2 or clip > 0) and scale >= FLOOR:
                norm = euclidean_norm(here, scale, folded)
                scale = norm if l2 else min(scale, F32(clip / np.sqrt(float(here.size))) * norm)
            step = F32(0)
            inverse = F32(0)
            if scale >= FLOOR:
                scale = min(scale, CEILING)
                step = scale if doubling else scale / F32(levels)
                inverse = (F32(1) if doubling else F32(levels)) / scale
            steps[b] = step
            # The last two blocks have no whole one ahead of them: a loop with that condition inside is slow.
            ahead = next_bits if next_bits.size == here.size else nothing[: here.size]
            if doubling:
                largest = round_doubling(here, ahead, target, step, inverse, levels, U32(first), keys)
            elif stochastic:
                largest = round_stochastic(here, ahead, target, step, inverse, levels, U32(first), keys)
            else:
                largest = round_nearest(here, ahead, target, step, inverse, levels)
            if next_bits.size != here.size:
                largest = largest_bits(next_bits)
        if bits != 8:
            pack(codes, here.size, out, bits)


@njit(**LOOP)
def dequantise(message: Any, out: Any, block: Any, bits: Any, levels: Any, doubling: Any, add: Any) -> None:
    """Writes or adds what each code stands for."""
    numel = out.size
    num_blocks = (numel + block - 1) // block
    steps = message[: 4 * num_blocks].view(np.float32)
    packed = message[4 * num_blocks :]
    mask = np.uint8((1 << bits) - 1)
    for b in range(num_blocks):
        first = b * block
        here = out[first : first + block]
        codes = packed[first * bits // 8 : (first * bits + here.size * bits + 7) // 8]
        width = codes.size
        for plane in range(8 // bits):
            begin = plane * width
            part = here[begin : begin + width]
            if doubling:
                place_doubling(part, codes, np.uint8(plane * bits), mask, steps[b], levels, add)
            else:
                place(part, codes, np.uint8(plane * bits), mask, steps[b], levels, add)


@njit(**LOOP)
def place(part: Any, codes: Any, shift: Any, mask: Any, step: Any, levels: Any, add: Any) -> None:
    """Writes or adds one plane of a block."""
    top = F32(levels)
    if add:
        for i in range(part.size):
            part[i] += (F32(np.uint8(codes[i] >> shift) & mask) - top) * step
    else:
        for i in range(part.size):
            part[i] = (F32(np.uint8(codes[i] >> shift) & mask) - top) * step


@njit(**LOOP)
def place_doubling(part: Any, codes: Any, shift: Any, mask: Any, step: Any, levels: Any, add: Any) -> None:
    """Like `place`, for levels that double."""
    top, bottom = I32(levels), I32(I32(127 - levels) << I32(23))
    for i in range(part.size):
        code = I32(I32(np.uint8(codes[i] >> shift) & mask) - top)
        level = max(code, I32(-code))
        value = float_of(U32(I32(level << I32(23)) + bottom)) if level > I32(0) else F32(0)
        value = (-value if code < I32(0) else value) * step
        part[i] = part[i] + value if add else value
