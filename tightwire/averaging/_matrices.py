"""Tensors seen as matrices, for methods that send factors: pure, the torch files and the values share it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tightwire.averaging.method import Shape
    from tightwire.buckets import Slot

FACTOR_ITEMSIZE = 4  # factors of half-precision buckets travel in float32: their errors would feed each other


def matrix(shape: Shape, rank: int) -> tuple[int, int] | None:
    """Returns a tensor's rows and columns if its factors of `rank` columns are smaller than it is.

    >>> matrix((64, 3, 3, 3), 4), matrix((64,), 4), matrix((4, 4), 4)
    ((64, 27), None, None)
    """
    if len(shape) < 2:
        return None
    rows, columns = shape[0], math.prod(shape[1:])
    return (rows, columns) if rank * (rows + columns) < rows * columns else None


def memory_shape(slot: Slot) -> Shape:
    """Returns a slot's dimensions in the order in which they lie in memory, the slowest first."""
    order = sorted(range(len(slot.shape)), key=lambda d: -slot.stride[d])
    return tuple(slot.shape[d] for d in order)


def elements_of(slot: Slot) -> slice:
    """Returns where a slot lies in its bucket."""
    return slice(slot.offset, slot.offset + slot.numel)
