"""Cosine waves on processors. `reference` says what the calls do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tightwire.kernels._rotations import cosine_network, cosine_scale
from tightwire.kernels.cpu import _cosines
from tightwire.kernels.cpu._arrays import eighth_of_octave


def encode_cosines(
    x: Tensor, backward: Tensor, bounds: tuple[float, float], kept: int, message: Tensor
) -> None:
    """Moves the strongest waves of every chunk of float32 `x` to the message."""
    chunk = backward.shape[0]
    network = cosine_network(chunk)
    loops = network.pairs, network.weights, network.order
    limits = np.float32(cosine_scale(chunk)), np.float32(bounds[0]), np.float32(bounds[1])
    eighth = np.uint32(eighth_of_octave(torch.float32))
    _cosines.encode_cosines(x.numpy(), backward.numpy(), loops, limits, kept, eighth, message.numpy())


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
