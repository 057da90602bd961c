"""Random bits as a function of an element's index and a seed."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._keys import keys_of


def random_unit(first: int, numel: int, seed: int, device: torch.device) -> Tensor:
    """Returns float32 in [0, 1) for the elements first … first + numel − 1 of the message with this seed."""
    return (random_bits(first, numel, seed, device) >> 8).to(torch.float32) * 2.0**-24


def random_bits(first: int, numel: int, seed: int, device: torch.device) -> Tensor:
    """Returns 32 random bits for each of these elements, as int64."""
    key, second_key = keys_of(seed)
    mask = 0xFFFFFFFF
    h = torch.arange(first, first + numel, device=device) ^ key
    h = h ^ (h >> 16)
    h = ((h * 0x7FEB352D) & mask) ^ second_key
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & mask
    return h ^ (h >> 16)
