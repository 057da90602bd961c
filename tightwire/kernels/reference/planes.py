"""Bytes sorted by their place in an element."""

from __future__ import annotations

import torch
from torch import Tensor


def split_planes(bits: Tensor, message: Tensor) -> None:
    """Writes the bytes of integers by their place in them, the lowest ones of all first."""
    message.view(bits.element_size(), -1).copy_(bits.view(torch.uint8).view(bits.numel(), -1).T)


def join_planes(message: Tensor, bits: Tensor) -> None:
    """Writes the integers whose bytes `split_planes` wrote."""
    bits.view(torch.uint8).view(bits.numel(), -1).copy_(message.view(bits.element_size(), -1).T)
