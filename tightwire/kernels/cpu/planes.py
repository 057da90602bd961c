"""Bytes by their place on processors. `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.cpu import _planes
from tightwire.kernels.cpu._arrays import unsigned_bits


def split_planes(bits: Tensor, message: Tensor) -> None:
    """Writes the bytes of integers by their place in them, the lowest ones of all first."""
    _planes.split(unsigned_bits(bits), message.numpy())


def join_planes(message: Tensor, bits: Tensor) -> None:
    """Writes the integers whose bytes `split_planes` wrote."""
    _planes.join(message.numpy(), unsigned_bits(bits))
