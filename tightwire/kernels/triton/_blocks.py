"""Kernels that select the largest magnitudes of every block."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import (
    put_words,
)


@triton.jit(do_not_specialize=["kept", "last_kept"])
def select_blocks(
    x: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    kept: tl.tensor,
    last_kept: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    ITEMSIZE: tl.constexpr,
    MASK: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Moves the largest magnitudes of every block to the message, the lowest indices among equals.

    Args:
        x: (numel,) signed integers, the bits of floats.
        message: uint16 places within blocks, then values.
        numel: elements.
        kept: of a whole block.
        last_kept: of the last block, if that is shorter.
        BLOCK: elements of a block.
        ROWS: blocks of a program.
        WIDTH: a power of two that holds a block.
        ITEMSIZE: bytes of an element.
        MASK: all bits but the sign.
        WIDE: what to compute in.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    size = tl.minimum(tl.maximum(numel - row * BLOCK, 0), BLOCK)
    k = tl.where(size == BLOCK, kept, tl.where(size > 0, last_kept, 0))
    place = tl.arange(0, WIDTH)[None, :]
    i, inside = (row * BLOCK)[:, None] + place, place < size[:, None]
    elements = tl.load(x + i, mask=inside, other=0)
    magnitudes = tl.where(inside, elements.to(WIDE) & MASK, -1)
    # The k-th largest, bit by bit: a bit is set if k elements still reach it.
    threshold = tl.zeros([ROWS], WIDE)
    for step in range(1, 8 * ITEMSIZE):
        candidate = threshold | (tl.full([ROWS], 1, WIDE) << (8 * ITEMSIZE - 1 - step))
        reaching = tl.sum((magnitudes >= candidate[:, None]).to(tl.int32), axis=1)
        threshold = tl.where(reaching >= k, candidate, threshold)
    larger = (magnitudes > threshold[:, None]).to(tl.int32)
    equal = (magnitudes == threshold[:, None]).to(tl.int32)
    ties = (k - tl.sum(larger, axis=1))[:, None]
    sent = (larger > 0) | ((equal > 0) & (tl.cumsum(equal, axis=1) <= ties))
    ones = sent.to(tl.int32)
    slot = (row * kept)[:, None] + tl.cumsum(ones, axis=1) - ones
    places = place + tl.zeros([ROWS, WIDTH], tl.int32)
    put_words(message, slot, places, sent, 2)
    total = (numel // BLOCK).to(tl.int64) * kept + (last_kept if numel % BLOCK else 0)
    put_words(message + 2 * total, slot, elements.to(WIDE), sent, ITEMSIZE)
    tl.store(x + i, tl.zeros([ROWS, WIDTH], WIDE).to(x.dtype.element_ty), mask=sent)
