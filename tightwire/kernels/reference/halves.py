"""Half-precision floats."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.reference._rows import read_as, write_or_add


def encode_half(x: Tensor, message: Tensor, half: torch.dtype) -> None:
    """Writes float32 `x` as `half`, saturating what is finite; `x` keeps the difference."""
    limit = torch.finfo(half).max
    rounded = torch.where(x.isfinite(), x.clamp(-limit, limit), x).to(half)
    message.copy_(rounded.view(torch.uint8))
    x.sub_(rounded)


def decode_half(message: Tensor, out: Tensor, half: torch.dtype, add: bool) -> None:
    """Writes or adds the `half` values of a message to float32 `out`."""
    write_or_add(read_as(message, half), out, add)
