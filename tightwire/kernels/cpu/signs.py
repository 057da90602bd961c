"""Signs on processors. `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.cpu import _signs


def encode_signs(x: Tensor, message: Tensor, block: int, two_sided: bool) -> None:
    """Writes the sign bits of float32 `x`, and per block the mean of |x|, or of each sign; `x` keeps the rest."""
    _signs.encode_signs(x.numpy(), message.numpy(), block, two_sided)


def decode_signs(message: Tensor, out: Tensor, block: int, two_sided: bool, add: bool) -> None:
    """Writes or adds a message of signs to float32 `out`."""
    _signs.decode_signs(message.numpy(), out.numpy(), block, two_sided, add)
