"""Bytes by their place on CUDA; `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.triton import _parts as parts
from tightwire.kernels.triton import _planes


def split_planes(bits: Tensor, message: Tensor) -> None:
    """Writes the bytes of integers by their place in them, the lowest ones of all first."""
    parts.launch_by_tile(_planes.split_planes, bits, message, bits.numel(), ITEMSIZE=bits.element_size())


def join_planes(message: Tensor, bits: Tensor) -> None:
    """Writes the integers whose bytes `split_planes` wrote."""
    parts.launch_by_tile(_planes.join_planes, bits, message, bits.numel(), ITEMSIZE=bits.element_size())
