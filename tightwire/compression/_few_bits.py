"""Sparse messages of few bits: indices local to a block, and values on a grid between the block's extremes.

A message is, per block, the least and the largest magnitude that it sends, as bfloat16, and then, per element, its
index in ⌈log₂ block⌉ bits, its sign, and its magnitude as one of 2^(bits − 1) evenly spaced between the two: what is
sent of an element is never further from it than nothing would be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tightwire import kernels

if TYPE_CHECKING:
    from torch import Tensor

VALUE_BITS = {"int2": 2, "int4": 4, "int8": 8}
HEAD_BYTES = 4
_BYTE = 8


def message_bytes(blocks: int, entries: int, index_bits: int, value_bits: int) -> int:
    """Returns the bytes of a message of so many blocks and elements."""
    return HEAD_BYTES * blocks + -(-entries * (index_bits + value_bits) // _BYTE)


def quantised(values: Tensor, value_bits: int) -> tuple[Tensor, Tensor]:
    """Returns the extremes, (rows, 2) bfloat16, and the codes, (rows, k) int32, of float32 values.

    A row that is not finite has NaN for its extremes.
    """
    import torch

    magnitudes, levels = values.abs(), 2 ** (value_bits - 1) - 1
    extremes = torch.stack([magnitudes.amin(1), magnitudes.amax(1)], 1)
    largest = torch.finfo(torch.bfloat16).max
    ends = extremes.clamp(max=largest).bfloat16()  # rounding to nearest may not leave the format
    ends[~values.isfinite().all(1)] = torch.nan
    low, high = ends.float().unbind(1)
    step = ((high - low) / levels).clamp(min=torch.finfo(torch.float32).tiny)
    codes = ((magnitudes - low[:, None]) / step[:, None]).round().nan_to_num(0.0).clamp(0, levels).int()
    return ends, codes | (values < 0).int() << (value_bits - 1)


def restored(ends: Tensor, codes: Tensor, value_bits: int) -> Tensor:
    """Returns the values of codes, float32, of the codes' shape."""
    import torch

    levels = 2 ** (value_bits - 1) - 1
    low, high = ends.float().unbind(1)
    share = (codes & levels).float() / levels
    magnitudes = torch.lerp(low[:, None], high[:, None], share)
    return torch.where(codes >> (value_bits - 1) > 0, -magnitudes, magnitudes)


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Returns (n,) int32 numbers of so many bits each, the lowest bit first, as bytes."""
    import torch

    spread = (numbers[:, None] >> _places(bits, numbers.device)) & 1
    padded = torch.zeros(-(-spread.numel() // _BYTE) * _BYTE, dtype=torch.int32, device=numbers.device)
    padded[: spread.numel()] = spread.flatten()
    return (padded.view(-1, _BYTE) << _places(_BYTE, numbers.device)).sum(1).to(torch.uint8)


def unpacked(message: Tensor, count: int, bits: int) -> Tensor:
    """Returns `count` numbers that were packed."""
    spread = (message.int()[:, None] >> _places(_BYTE, message.device)) & 1
    rows = spread.flatten()[: count * bits].view(count, bits)
    numbers: Tensor = (rows << _places(bits, message.device)).sum(1)
    return numbers.int()


@kernels.per_thread
def _places(bits: int, device: object) -> Tensor:
    import torch

    return torch.arange(bits, dtype=torch.int32, device=device)  # type: ignore[call-overload,no-any-return]
