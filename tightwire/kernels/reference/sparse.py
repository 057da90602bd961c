"""The largest magnitudes, and those that reach a threshold, each with its index."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.reference._rows import magnitude_bits, read_as


def select_largest(x: Tensor, message: Tensor, k: int) -> None:
    """Moves the k elements of largest magnitude, of any float dtype, from `x` to the message."""
    order = magnitude_bits(x).sort(descending=True, stable=True).indices
    indices = order[:k].sort().values
    message[: 4 * k] = indices.to(torch.int32).view(torch.uint8)
    message[4 * k :] = x[indices].view(torch.uint8)
    x[indices] = 0


def scatter_largest(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds the k values of a message to `out`; False, with nothing done, if an index is wrong."""
    indices = read_as(message[: 4 * k], torch.int32).long()
    return write_at(indices, read_as(message[4 * k :], out.dtype), out, add)


def select_above(x: Tensor, message: Tensor, k: int, threshold: float) -> None:
    """Moves the magnitudes of at least `threshold`, or the k largest if those are fewer, to the message.

    The message is an int32 count, k int32 indices, ascending, and k values; unused places are zero.
    """
    low = magnitude_bits(torch.tensor([threshold], dtype=torch.float64, device=x.device).to(x.dtype))
    magnitudes = magnitude_bits(x)
    order = magnitudes.sort(descending=True, stable=True).indices[:k]
    indices = order[magnitudes[order] >= low.clamp(min=1)].sort().values
    write_counted(indices, x[indices], message, k)
    x[indices] = 0


def write_counted(indices: Tensor, values: Tensor, message: Tensor, k: int) -> None:
    """Writes the message that `scatter_sparse` reads: a count, k int32 indices and k values; unused places are zero."""
    count, itemsize = indices.numel(), values.element_size()
    message.zero_()
    message[:4] = torch.tensor([count], dtype=torch.int32, device=message.device).view(torch.uint8)
    message[4 : 4 + 4 * count] = indices.to(torch.int32).view(torch.uint8)
    message[4 + 4 * k :][: count * itemsize] = values.view(torch.uint8)


def scatter_sparse(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds a message of at most k elements; False, with nothing done, if it cannot be valid."""
    count = int(message[:4].clone().view(torch.int32))
    if not 0 <= count <= k:
        return False
    indices = message[4 : 4 + 4 * count].clone().view(torch.int32).long()
    values = message[4 + 4 * k :][: count * out.element_size()].clone().view(out.dtype)
    return write_at(indices, values, out, add)


def write_at(indices: Tensor, values: Tensor, out: Tensor, add: bool) -> bool:
    """Writes or adds values at indices; False, with nothing done, unless these ascend within `out`."""
    count = indices.numel()
    if count and (bool((indices.diff() <= 0).any()) or indices[0] < 0 or indices[-1] >= out.numel()):
        return False
    if not add:
        out.zero_()
    out[indices] = out[indices] + values if add else values
    return True
