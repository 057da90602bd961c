"""Kernels that turn chunks into cosine coefficients and back: a row of a program for each chunk."""

from __future__ import annotations

import triton
import triton.language as tl

from tightwire.kernels.triton._parts import INFINITY, get_words, load_rows, magnitude_of, rows_of


@triton.jit
def transform(
    x: tl.tensor,
    coefficients: tl.tensor,
    partners: tl.tensor,
    own: tl.tensor,
    other: tl.tensor,
    order: tl.tensor,
    numel: tl.tensor,
    scale: tl.tensor,
    largest: tl.tensor,
    layers: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Writes the coefficients of every chunk, the last one filled up with zeros.

    Args:
        x: (numel,) float32.
        coefficients: whole chunks of float32.
        partners: (layers, WIDTH) int32, of a `CosineNetwork`.
        own: (layers, WIDTH) float32.
        other: (layers, WIDTH) float32.
        order: (WIDTH,) int32.
        numel: elements.
        scale: of all elements.
        largest: a chunk that is finite, and somewhere larger, has coefficients of zero.
        layers: of the network.
        BLOCK: elements of a chunk.
        ROWS: chunks of a program.
        WIDTH: as BLOCK, a power of two.
    """
    row, size = rows_of(numel, BLOCK, ROWS)
    place = tl.arange(0, WIDTH)
    value = load_rows(x, row, size, BLOCK, WIDTH)
    most = tl.max(magnitude_of(value), axis=1)
    is_large = (most < INFINITY) & (most.to(tl.float32, bitcast=True) > largest)
    value = value * scale
    for layer in range(layers):
        partner = tl.load(partners + layer * WIDTH + place)
        mine, its = tl.load(own + layer * WIDTH + place), tl.load(other + layer * WIDTH + place)
        index = tl.broadcast_to(partner[None, :], [ROWS, WIDTH])
        rotated = mine[None, :] * value + its[None, :] * tl.gather(value, index, 1)
        value = tl.where((partner == place)[None, :], value, rotated)
    final = tl.broadcast_to(tl.load(order + place)[None, :], [ROWS, WIDTH])
    value = tl.where(is_large[:, None], 0.0, tl.gather(value, final, 1))
    tl.store(coefficients + row[:, None] * BLOCK + place[None, :], value, mask=size[:, None] > 0)


@triton.jit(do_not_specialize=["kept"])
def add_waves(
    out: tl.tensor,
    message: tl.tensor,
    backward: tl.tensor,
    fault: tl.tensor,
    numel: tl.tensor,
    kept: tl.tensor,
    HOW: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Writes (HOW = 0), adds (1) or subtracts (-1) the waves of a message that was checked.

    Args:
        out: (numel,) float32.
        message: uint16 indices within chunks, then float32 coefficients.
        backward: (WIDTH, WIDTH) float32; row j is the wave of coefficient j.
        fault: int32; where it is not 0, nothing is done.
        numel: elements.
        kept: coefficients per chunk.
        HOW: they meet `out`.
        BLOCK: elements of a chunk.
        ROWS: chunks of a program.
        WIDTH: as BLOCK, a power of two.
    """
    row, size = rows_of(numel, BLOCK, ROWS)
    place = tl.arange(0, WIDTH)[None, :]
    values = message + 2 * tl.cdiv(numel, BLOCK).to(tl.int64) * kept
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    is_sound = tl.load(fault) == 0
    for j in range(kept):
        slot = row * kept + j
        index = get_words(message, slot, (size > 0) & is_sound, 2, tl.int32)
        value = get_words(values, slot, size > 0, 4, tl.int32).to(tl.float32, bitcast=True)
        total = total + value[:, None] * tl.load(backward + index[:, None] * WIDTH + place)
    inside = (place < size[:, None]) & is_sound
    where = out + row[:, None] * BLOCK + place
    if HOW == 1:
        total = tl.load(where, mask=inside, other=0.0) + total
    if HOW == -1:
        total = tl.load(where, mask=inside, other=0.0) - total
    tl.store(where, total, mask=inside)
