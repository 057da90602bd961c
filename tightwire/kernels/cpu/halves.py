"""Half-precision floats on processors. `reference` says what the calls do."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.cpu import _halves

_ENCODE = {torch.float16: _halves.encode_float16, torch.bfloat16: _halves.encode_bfloat16}
_DECODE = {torch.float16: _halves.decode_float16, torch.bfloat16: _halves.decode_bfloat16}


def encode_half(x: Tensor, message: Tensor, half: torch.dtype) -> None:
    """Writes float32 `x` as `half`, saturating what is finite; `x` keeps the difference."""
    _ENCODE[half](x.numpy(), message.numpy())


def decode_half(message: Tensor, out: Tensor, half: torch.dtype, add: bool) -> None:
    """Writes or adds the `half` values of a message to float32 `out`."""
    _DECODE[half](message.numpy(), out.numpy(), add)
