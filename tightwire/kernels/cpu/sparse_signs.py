"""Elements as indices and signs on processors. `reference` says what the calls do."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tightwire.kernels.cpu import _sparse_signs
from tightwire.kernels.cpu._arrays import unsigned_bits


def encode_sparse_signs(x: Tensor, found: Tensor, k: int, magnitude: float, message: Tensor) -> None:
    """Writes ± a magnitude at the positions found; float32 `x` keeps the rest."""
    payload = found.numpy()
    count = found.numel() // 8
    indices, values = payload[: 4 * count].view(np.int32), payload[4 * count :].view(np.float32)
    _sparse_signs.encode_sparse_signs(
        x.numpy(), indices[:k], values[:k], np.float32(magnitude), message.numpy()
    )


def decode_sparse_signs(message: Tensor, count: int, magnitude: float, out: Tensor, add: bool) -> bool:
    """Writes or adds ± a magnitude at marked positions; False, with nothing done, if these cannot be."""
    entries = message.numpy().view(np.uint32)[:count]
    return bool(_sparse_signs.decode_sparse_signs(entries, np.float32(magnitude), out.numpy(), add))


def mean_magnitude(values: Tensor) -> float:
    """Returns the mean magnitude of float32 bytes, as a float32; 0 of none, NaN if one is not finite."""
    return float(_sparse_signs.mean_magnitude(values.numpy().view(np.float32)))


def select_dominant_sign(x: Tensor, found: Tensor) -> tuple[int, float]:
    """Finds the largest elements of one sign in float32 `x`."""
    payload = found.numpy()
    split = payload.size // 2
    count, mean = _sparse_signs.select_dominant_sign(
        unsigned_bits(x), split // 4, payload[:split].view(np.int32), payload[split:].view(np.uint32)
    )
    return int(count), float(mean)
