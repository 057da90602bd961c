"""Some elements, each as an index and a sign."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.reference.sparse import write_at


def encode_sparse_signs(x: Tensor, found: Tensor, k: int, magnitude: float, message: Tensor) -> None:
    """Writes ± a magnitude at the positions found; float32 `x` keeps the rest.

    Args:
        x: float32.
        found: int32 indices, ascending, then as many float32 values; the first `k` of both count.
        k: how many.
        magnitude: that all are sent as.
        message: int32 places, of which unused ones are cleared: an index, and the sign in the highest bit.
    """
    split = found.numel() // 2
    indices = found[:split].clone().view(torch.int32)[:k]
    values = found[split:].clone().view(torch.float32)[:k]
    negative = values.signbit()
    x[indices.long()] = values - _signed(magnitude, negative)
    message.zero_()
    message[: 4 * k] = (indices | (negative.to(torch.int32) << 31)).view(torch.uint8)


def decode_sparse_signs(message: Tensor, count: int, magnitude: float, out: Tensor, add: bool) -> bool:
    """Writes or adds ± a magnitude at `count` marked positions; False, with nothing done, if these cannot be."""
    entries = message[: 4 * count].clone().view(torch.int32)
    return write_at((entries & 0x7FFFFFFF).long(), _signed(magnitude, entries < 0), out, add)


def _signed(magnitude: float, negative: Tensor) -> Tensor:
    size = torch.full(negative.shape, magnitude, dtype=torch.float32, device=negative.device)
    return torch.where(negative, -size, size)


def mean_magnitude(values: Tensor) -> float:
    """Returns the mean magnitude of float32 bytes, as a float32; 0 of none, NaN if one is not finite."""
    magnitudes = values.clone().view(torch.float32).abs()
    if not magnitudes.numel():
        return 0.0
    if not magnitudes.isfinite().all():
        return float("nan")
    return float(magnitudes.mean(dtype=torch.float64).float())


def select_dominant_sign(x: Tensor, found: Tensor) -> tuple[int, float]:
    """Finds the largest elements of one sign in float32 `x`, which stays as it is.

    Of both signs the largest are taken, at most as many as there is room for and no zeros; the sign whose largest
    have the larger mean magnitude is chosen, the positive one if they are equal.

    Args:
        x: float32.
        found: room for int32 indices, ascending, then as many float32 values; unused places are undefined.

    Returns:
        How many there are, -1 if `x` is not finite; their mean magnitude, a float32.
    """
    if not x.isfinite().all():
        return -1, 0.0
    room = found.numel() // 8
    sides = []
    for side in (x.clamp(min=0.0), x.clamp(max=0.0)):
        order = side.abs().sort(descending=True, stable=True).indices[:room]
        indices = order[side[order] != 0].sort().values
        mean = x[indices].double().abs().sum() / max(indices.numel(), 1)
        sides.append((indices, float(mean.float())))
    (above, below) = sides
    indices, mean_of = below if below[1] > above[1] else above
    count = indices.numel()
    found[: 4 * count] = indices.to(torch.int32).view(torch.uint8)
    found[4 * room :][: 4 * count] = x[indices].view(torch.uint8)
    return count, mean_of
