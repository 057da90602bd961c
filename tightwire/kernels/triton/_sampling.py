"""Kernels that choose elements at random."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels._sampling import ONE as _ONE
from tightwire.kernels.triton._parts import (
    put_words,
    random_bits,
)

ONE = tl.constexpr(_ONE)
LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def probabilities_at(x: tl.tensor, i: tl.tensor, numel: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """Returns the elements at `i`, and their probabilities in units of 1/ONE; 0 where they are zero."""
    value = tl.load(x + i, mask=i < numel, other=0.0).to(tl.float64)
    magnitude = tl.abs(value)
    scaled = tl.where(magnitude == 0, 0.0, tl.minimum(magnitude * scale, ONE - 1.0))
    return value, tl.where(magnitude == 0, 0, scaled.to(tl.int64) + 1)


@triton.jit
def sum_probabilities(
    x: tl.tensor, scale: tl.tensor, sums: tl.tensor, numel: tl.tensor, TILE: tl.constexpr
) -> None:
    """Writes the sum of the probabilities of each tile, int64."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    _, probability = probabilities_at(x, i, numel, tl.load(scale))
    tl.store(sums + tl.program_id(0), tl.sum(probability))


@triton.jit(do_not_specialize=["start", "k"])
def sample_by_magnitude(
    x: tl.tensor,
    scale: tl.tensor,
    sums: tl.tensor,
    ends: tl.tensor,
    message: tl.tensor,
    numel: tl.tensor,
    start: tl.tensor,
    k: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """Moves the elements where the sum of probabilities passes a whole number to the message, divided by theirs.

    Args:
        x: (numel,) finite float32; keeps what the message does not carry.
        scale: float64, of magnitudes to probabilities.
        sums: of each tile's probabilities.
        ends: sums of probabilities up to and with each tile.
        message: int32 count, k int32 indices, k values; zeros so far.
        numel: elements.
        start: of the sum, below ONE.
        k: places in the message.
        TILE: elements of a program.
    """
    tile = tl.program_id(0)
    i = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    value, probability = probabilities_at(x, i, numel, tl.load(scale))
    total = tl.load(ends + tile) - tl.load(sums + tile) + start + tl.cumsum(probability, axis=0)
    slot = total // ONE - 1
    drawn = slot >= (total - probability) // ONE
    whole = tl.full([TILE], ONE, tl.float64)
    value = value * (whole / tl.where(probability > 0, probability, 1).to(tl.float64))
    sent = tl.minimum(tl.maximum(value, -LARGEST), LARGEST).to(tl.float32)
    put_words(message + 4, slot, i, drawn, 4)
    values = message + 4 + 4 * (k + tl.zeros([1], tl.int64))
    put_words(values, slot, sent.to(tl.int32, bitcast=True), drawn, 4)
    tl.store(x + i, tl.load(x + i, mask=drawn, other=0.0) - sent, mask=drawn)
    zero = tl.zeros([1], tl.int32)
    count = (tl.load(ends + tile) + start) // ONE + zero
    put_words(message, zero, count, zero + tile == tl.num_programs(0) - 1, 4)


@triton.jit(do_not_specialize=["key", "second_key", "count"])
def shared_indices(
    out: tl.tensor,
    numel: tl.tensor,
    key: tl.tensor,
    second_key: tl.tensor,
    count: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """Writes ascending places below `numel`, one drawn from each of `count` stretches of equal length."""
    j = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    first, end = j * numel // count, (j + 1) * numel // count
    drawn = random_bits(j, key, second_key).to(tl.int64) * (end - first)
    tl.store(out + j, first + (drawn >> 32), mask=j < count)
