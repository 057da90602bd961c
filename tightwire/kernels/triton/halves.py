"""Half-precision floats on CUDA; `reference` says what the calls do."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._scratch import scratch_tensor
from tightwire.kernels.triton import _halves
from tightwire.kernels.triton import _parts as parts


def encode_half(x: Tensor, message: Tensor, half: torch.dtype) -> None:
    """Writes float32 `x` as `half`, saturating what is finite; `x` keeps the difference."""
    fits = message.data_ptr() % 2 == 0 and message.storage_offset() % 2 == 0
    room = message if fits else scratch_tensor("halves", message.numel(), torch.uint8, x.device)
    halves = room.view(torch.int16)
    parts.launch_by_tile(_halves.encode_half, x, halves, x.numel(), BFLOAT=half == torch.bfloat16)
    if not fits:
        message.copy_(room)


def decode_half(message: Tensor, out: Tensor, half: torch.dtype, add: bool) -> None:
    """Writes or adds the `half` values of a message to float32 `out`."""
    fits = message.data_ptr() % 2 == 0 and message.storage_offset() % 2 == 0
    room = (
        message if fits else scratch_tensor("halves", message.numel(), torch.uint8, out.device).copy_(message)
    )
    parts.launch_by_tile(
        _halves.decode_half, out, room.view(torch.int16), out.numel(), BFLOAT=half == torch.bfloat16, ADD=add
    )
