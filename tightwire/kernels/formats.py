"""The shapes of messages: one definition for a kernel and for its byte formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rounds each element of a block to one of 2·levels + 1 values around zero, evenly spaced unless they double.

    The message is one float32 step per block, then the codes: `bits` each, shifted to be unsigned by adding
    `levels`, packed per block. A block of r elements takes w = ceil(r·bits/8) bytes; element i is in byte
    i % w, at bit (i // w)·bits, so that packing and unpacking read and write consecutive memory.

    Attributes:
        block: elements that share a step; a multiple of 8.
        bits: per code, 2, 4 or 8.
        levels: above zero; 2·levels + 1 ≤ 2**bits, and levels ≤ 127.
        norm: what `levels` steps reach up to: the largest magnitude of the block, or its Euclidean norm.
        clip: what `levels` steps reach at most, in root mean squares of the block; 0 does not limit them.
        stochastic: whether rounding up has the probability that makes it unbiased; to nearest otherwise.
        doubling: whether each level is twice the one below, up to one step: level l is 2**(l − levels) steps.
    """

    block: int
    bits: int
    levels: int
    norm: Literal["max", "l2"] = "max"
    clip: float = 0.0
    stochastic: bool = False
    doubling: bool = False

    def num_blocks(self, numel: int) -> int:
        """Returns how many blocks, the last one possibly short, hold `numel` elements."""
        return -(-numel // self.block)

    def wire_bytes(self, numel: int) -> int:
        """Returns the size of the message for `numel` elements."""
        return 4 * self.num_blocks(numel) + -(-numel * self.bits // 8)


@dataclass(frozen=True, kw_only=True)
class Fp8:
    """An 8-bit float format: a sign, an exponent, and this many bits of mantissa.

    Attributes:
        mantissa: bits.
        bias: of the exponent.
        top: the largest finite value.
    """

    mantissa: int
    bias: int
    top: float


E4M3 = Fp8(mantissa=3, bias=7, top=448.0)
E5M2 = Fp8(mantissa=2, bias=15, top=57344.0)

# What a block of votes is. The worst of several is the largest.
ABSTAINED, VOTED, SPOILED = 0, 1, 2

# Entropy-coded floats: elements of a block, which has one code for all, and the streams that its words are in.
ENTROPY_BLOCK, ENTROPY_STREAMS = 1 << 16, 4
# What a block begins with: its kind, which planes it has, how many symbols, and how many elements are coded.
ENTROPY_HEADER_BYTES = 8
# Behind the last block, so that readers may load whole words.
ENTROPY_GUARD_BYTES = 8
# Kinds of blocks: as they are; all zero; coded; coded without zeros, of which a bitmap tells the places.
ENTROPY_RAW, ENTROPY_ZERO, ENTROPY_CODED, ENTROPY_SPARSE = 0, 1, 2, 3


def entropy_bound_bytes(numel: int, itemsize: int) -> int:
    """Returns the longest message of entropy-coded floats: where none are coded."""
    return numel * itemsize + ENTROPY_HEADER_BYTES * -(-numel // ENTROPY_BLOCK) + ENTROPY_GUARD_BYTES
