"""Kernels that sort bytes by their place in an element."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_planes(
    x: tl.tensor, planes: tl.tensor, numel: tl.tensor, ITEMSIZE: tl.constexpr, TILE: tl.constexpr
) -> None:
    """Writes the lowest bytes of all elements, then the next ones, up to the highest.

    Args:
        x: (numel,) signed integers.
        planes: bytes.
        numel: elements.
        ITEMSIZE: bytes of an element.
        TILE: elements of a program.
    """
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = i < numel
    value = tl.load(x + i, mask=inside, other=0)
    for place in tl.static_range(ITEMSIZE):
        tl.store(planes + i + numel.to(tl.int64) * place, (value >> (8 * place)).to(tl.uint8), mask=inside)


@triton.jit
def join_planes(
    x: tl.tensor, planes: tl.tensor, numel: tl.tensor, ITEMSIZE: tl.constexpr, TILE: tl.constexpr
) -> None:
    """Is the inverse of `split_planes`."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = i < numel
    value = tl.zeros([TILE], x.dtype.element_ty)
    for place in tl.static_range(ITEMSIZE):
        byte = tl.load(planes + i + numel.to(tl.int64) * place, mask=inside, other=0)
        value = value | (byte.to(x.dtype.element_ty) << (8 * place))
    tl.store(x + i, value, mask=inside)
