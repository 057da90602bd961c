"""Floats without loss on CUDA: coded by the processor, for words of any length are read one after the other.

`reference` says what the calls do. A message that leaves the host has to pass it anyway; the copy of the floats is what
this costs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._scratch import scratch_tensor
from tightwire.kernels.cpu import entropy as host


def encode_entropy(x: Tensor, message: Tensor) -> int:
    """Writes the floats `x`, of any dtype, and returns the length of the message; `x` stays as it is."""
    room = scratch_tensor("entropy", message.numel(), torch.uint8)
    length = host.encode_entropy(x.cpu(), room)
    message[:length].copy_(room[:length])
    return length


def decode_entropy(message: Tensor, out: Tensor) -> bool:
    """Writes the floats of a message to `out`; False, `out` being undefined, if it cannot be one of so many."""
    floats = scratch_tensor("floats", out.numel(), out.dtype)
    is_possible = host.decode_entropy(message.cpu(), floats)
    out.copy_(floats)
    return is_possible
