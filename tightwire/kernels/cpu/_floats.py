"""Loops that send one byte per element in a floating-point format of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

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
)
from tightwire.kernels.cpu._uniform import largest_bits

SIGN = U32(0x80000000)


@njit(**LOOP)
def round_powers(block: Any, next_bits: Any, codes: Any, lowest: Any, first: Any, keys: Any) -> Any:
    """Rounds a block to powers of two; returns the largest magnitude's bits of `next_bits`."""
    bits = block.view(np.uint32)
    largest = U32(0)
    for i in range(block.size):
        largest = max(largest, U32(next_bits[i] & MAGNITUDE))
        sign = U32(bits[i] & SIGN)
        # Adding random bits below the exponent carries into it with the probability of the fraction.
        random = U32(random_bits(U32(first + U32(i)), keys[0], keys[1]) >> U32(9))
        exponent = I32(U32(U32(bits[i] & MAGNITUDE) + random) >> U32(23))
        code = max(I32(min(exponent, I32(254)) - lowest), I32(0))
        value = U32(I32(code + lowest) << I32(23)) if code > I32(0) else U32(0)
        codes[i] = np.uint8(U32(U32(code) | U32(sign >> U32(24))))
        block[i] -= float_of(U32(value | sign))
    return largest


@njit(**LOOP)
def encode_powers(x: Any, message: Any, block: Any, keys: Any) -> None:
    """Writes each block's top exponent and a byte per element: its sign, and its exponent below the top."""
    num_blocks = (x.size + block - 1) // block
    tops, codes = message[:num_blocks], message[num_blocks:]
    all_bits = x.view(np.uint32)
    nothing = np.zeros(block, np.uint32)
    largest = largest_bits(all_bits[:block])
    for b in range(num_blocks):
        first = b * block
        here = x[first : first + block]
        next_bits = all_bits[first + block : first + 2 * block]
        if largest >= INFINITY:
            tops[b] = np.uint8(255)
            codes[first : first + here.size] = np.uint8(0)
            here[:] = F32(np.nan)
            largest = largest_bits(next_bits)
            continue
        top = min(I32(U32(largest >> U32(23))) + I32(1), I32(254))
        tops[b] = np.uint8(top)
        lowest = I32(max(top - I32(127), I32(0)))
        ahead = next_bits if next_bits.size == here.size else nothing[: here.size]
        largest = round_powers(here, ahead, codes[first : first + here.size], lowest, U32(first), keys)
        if next_bits.size != here.size:
            largest = largest_bits(next_bits)


@njit(**LOOP)
def decode_powers(message: Any, out: Any, block: Any, add: Any) -> None:
    """Writes or adds the powers of two of a message."""
    num_blocks = (out.size + block - 1) // block
    tops, codes = message[:num_blocks], message[num_blocks:]
    for b in range(num_blocks):
        here = out[b * block : (b + 1) * block]
        block_codes = codes[b * block : (b + 1) * block]
        if tops[b] == 255:
            here[:] = F32(np.nan)
            continue
        lowest = I32(max(I32(tops[b]) - I32(127), I32(0)))
        for i in range(here.size):
            code = I32(block_codes[i] & np.uint8(127))
            value = U32(I32(code + lowest) << I32(23)) if code > I32(0) else U32(0)
            value = U32(value | U32(U32(block_codes[i] & np.uint8(128)) << U32(24)))
            here[i] = here[i] + float_of(value) if add else float_of(value)


@njit(**LOOP)
def round_fp8(
    block: Any, next_bits: Any, codes: Any, step: Any, inverse: Any, mantissa: Any, bias: Any
) -> Any:
    """Rounds a block to an 8-bit float format; returns the largest magnitude's bits of `next_bits`."""
    drop = U32(23 - mantissa)
    half = U32((U32(1) << U32(drop - U32(1))) - U32(1))
    smallest_normal = float_of(U32(I32(128 - bias) << I32(23)))
    # Below the smallest normal the format is a uniform grid of this spacing.
    spacing = float_of(U32(I32(128 - bias - mantissa) << I32(23)))
    finer = F32(1) / spacing
    largest = U32(0)
    for i in range(block.size):
        largest = max(largest, U32(next_bits[i] & MAGNITUDE))
        scaled = bits_of(block[i] * inverse)
        sign = U32(scaled & SIGN)
        magnitude = U32(scaled & MAGNITUDE)
        normal = U32(U32(U32(magnitude + half) + U32(U32(magnitude >> drop) & U32(1))) >> drop)
        steps = (float_of(magnitude) * finer + ROUNDER) - ROUNDER
        is_normal = float_of(magnitude) >= smallest_normal
        code = U32(normal - U32((127 - bias) << mantissa)) if is_normal else U32(I32(steps))
        value = float_of(U32(normal << drop)) if is_normal else steps * spacing
        codes[i] = np.uint8(U32(code | U32(sign >> U32(24))))
        block[i] -= float_of(U32(bits_of(value) | sign)) * step
    return largest


@njit(**LOOP)
def encode_fp8(x: Any, message: Any, block: Any, top: Any, mantissa: Any, bias: Any) -> None:
    """Writes each block's step, by which its largest magnitude is the format's, and a byte per element."""
    num_blocks = (x.size + block - 1) // block
    steps, codes = message[: 4 * num_blocks].view(np.float32), message[4 * num_blocks :]
    all_bits = x.view(np.uint32)
    nothing = np.zeros(block, np.uint32)
    largest = largest_bits(all_bits[:block])
    for b in range(num_blocks):
        first = b * block
        here = x[first : first + block]
        next_bits = all_bits[first + block : first + 2 * block]
        if largest >= INFINITY:
            steps[b] = F32(np.nan)
            codes[first : first + here.size] = np.uint8(0)
            here[:] = F32(np.nan)
            largest = largest_bits(next_bits)
            continue
        scale = min(float_of(largest), CEILING)
        step = F32(0)
        inverse = F32(0)
        if scale >= FLOOR:
            step = scale / F32(top)
            inverse = F32(top) / scale
        steps[b] = step
        ahead = next_bits if next_bits.size == here.size else nothing[: here.size]
        target = codes[first : first + here.size]
        largest = round_fp8(here, ahead, target, step, inverse, mantissa, bias)
        if next_bits.size != here.size:
            largest = largest_bits(next_bits)


@njit(**LOOP)
def decode_fp8(message: Any, out: Any, block: Any, values: Any, add: Any) -> None:
    """Writes or adds value × step, the value of every byte being given."""
    num_blocks = (out.size + block - 1) // block
    steps, codes = message[: 4 * num_blocks].view(np.float32), message[4 * num_blocks :]
    scaled = np.empty(256, np.float32)
    for b in range(num_blocks):
        here = out[b * block : (b + 1) * block]
        block_codes = codes[b * block : (b + 1) * block]
        for code in range(256):
            scaled[code] = values[code] * steps[b]
        if add:
            for i in range(here.size):
                here[i] += scaled[block_codes[i]]
        else:
            for i in range(here.size):
                here[i] = scaled[block_codes[i]]
