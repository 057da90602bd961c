"""Loops that cast, count and read votes: one bit per element, and per block whether they count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import F32, INFINITY, LOOP, MAGNITUDE, U32, random_bits
from tightwire.kernels.cpu._signs import place_signs
from tightwire.kernels.cpu._uniform import pack
from tightwire.kernels.formats import ABSTAINED, SPOILED, VOTED


@njit(**LOOP)
def encode_votes(x: Any, message: Any, block: Any, keys: Any) -> None:
    """Writes each block's state and its sign bits; where an element is zero, a random one."""
    num_blocks = (x.size + block - 1) // block
    states, packed = message[:num_blocks], message[num_blocks:]
    all_bits = x.view(np.uint32)
    codes = np.empty(block + 8, np.uint8)
    for b in range(num_blocks):
        first = b * block
        bits = all_bits[first : first + block]
        largest, smallest = U32(0), MAGNITUDE
        for i in range(bits.size):
            magnitude = U32(bits[i] & MAGNITUDE)
            largest, smallest = max(largest, magnitude), min(smallest, magnitude)
            codes[i] = np.uint8(U32(bits[i] >> U32(31)))
        if smallest == 0:
            for i in range(bits.size):
                random = np.uint8(U32(random_bits(U32(U32(first) + U32(i)), keys[0], keys[1]) >> U32(31)))
                codes[i] = codes[i] if U32(bits[i] & MAGNITUDE) else random
        states[b] = SPOILED if largest >= INFINITY else VOTED if largest > 0 else ABSTAINED
        pack(codes, bits.size, packed[first // 8 : (first + bits.size + 7) // 8], 1)


@njit(**LOOP)
def count_votes(messages: Any, outcome: Any, numel: Any, block: Any, keys: Any) -> None:
    """Writes the message of what the majority of each element's votes is; of a tie, a random one."""
    num_blocks = (numel + block - 1) // block
    states, packed = outcome[:num_blocks], outcome[num_blocks:]
    codes = np.empty(block + 8, np.uint8)
    counts = np.empty(block + 8, np.int32)
    for b in range(num_blocks):
        first = b * block
        size = min(block, numel - first)
        start, end = num_blocks + first // 8, num_blocks + (first + size + 7) // 8
        state, voters = ABSTAINED, np.int32(0)
        counts[:] = np.int32(0)
        for rank in range(messages.shape[0]):
            state = max(state, messages[rank, b])
            if messages[rank, b] == VOTED:
                voters += np.int32(1)
                count(counts, messages[rank, start:end])
        states[b] = state
        for i in range(size):
            twice = np.int32(2) * counts[i]
            random = np.uint8(U32(random_bits(U32(U32(first) + U32(i)), keys[0], keys[1]) >> U32(31)))
            codes[i] = random if twice == voters else np.uint8(twice > voters)
        pack(codes, size, packed[first // 8 : (first + size + 7) // 8], 1)


@njit(**LOOP)
def count(counts: Any, packed: Any) -> None:
    """Adds the bits of a block."""
    for plane in range(8):
        part = counts[plane * packed.size : (plane + 1) * packed.size]
        for i in range(packed.size):
            part[i] += np.int32(np.uint8(packed[i] >> np.uint8(plane)) & np.uint8(1))


@njit(**LOOP)
def decode_votes(message: Any, out: Any, block: Any, add: Any) -> None:
    """Writes or adds 1 or −1; where a block abstained 0, and where it is spoiled NaN."""
    num_blocks = (out.size + block - 1) // block
    states, packed = message[:num_blocks], message[num_blocks:]
    for b in range(num_blocks):
        here = out[b * block : (b + 1) * block]
        codes = packed[b * block // 8 : (b * block + here.size + 7) // 8]
        size = F32(1) if states[b] == VOTED else F32(0) if states[b] == ABSTAINED else F32(np.nan)
        for plane in range(8):
            part = here[plane * codes.size : (plane + 1) * codes.size]
            place_signs(part, codes, np.uint8(1 << plane), size, -size, add)
