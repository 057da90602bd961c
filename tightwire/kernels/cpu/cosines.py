"""Cosine waves on processors. `reference` says what the calls do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tightwire.kernels.cpu import _cosines
from tightwire.kernels.cpu._arrays import eighth_of_octave


def cosine_transform(x: Tensor, forward: Tensor, largest: float, limit: float, coefficients: Tensor) -> None:
    """Writes the coefficients of every chunk of float32 `x`."""
    bounds = np.float32(largest), np.float32(limit)
    _cosines.cosine_transform(x.numpy(), forward.numpy(), *bounds, coefficients.numpy())


def decode_cosines(message: Tensor, out: Tensor, backward: Tensor, kept: int, how: int) -> bool:
    """Writes, adds or subtracts the waves of a message; False, with nothing done, if an index is wrong."""
    chunk = backward.shape[0]
    total = -(-out.numel() // chunk) * kept
    payload = message.numpy()
    indices, values = payload[: 2 * total].view(np.uint16), payload[2 * total :].view(np.float32)
    if not _cosines.ascend(indices, kept, chunk):
        return False
    _cosines.decode_cosines(indices, values, backward.numpy(), kept, out.numpy(), how)
    return True


def encode_cosines(
    x: Tensor, waves: tuple[Tensor, Tensor], bounds: tuple[float, float], kept: int, message: Tensor
) -> None:
    """Moves the strongest waves of every chunk of float32 `x` to the message."""
    forward, backward = waves
    limits = np.float32(bounds[0]), np.float32(bounds[1])
    matrices = forward.numpy(), backward.numpy()
    eighth = np.uint32(eighth_of_octave(torch.float32))
    _cosines.encode_cosines(x.numpy(), matrices, limits, kept, eighth, message.numpy())
