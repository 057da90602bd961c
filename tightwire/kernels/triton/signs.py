"""Signs on CUDA; `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.reference import signs as reference
from tightwire.kernels.triton import _parts as parts
from tightwire.kernels.triton import _signs


def encode_signs(x: Tensor, message: Tensor, block: int, two_sided: bool) -> None:
    """Writes the sign bits of float32 `x`, and per block the mean of |x|, or of each sign; `x` keeps the rest."""
    if block > parts.LARGEST_BLOCK:
        return reference.encode_signs(x, message, block, two_sided)
    # Two sums at a time take twice the registers, more than there are where a program has many blocks.
    most = parts.TILE // 4 if two_sided else parts.TILE
    programs, shape = parts.bit_rows(x.numel(), block, most)
    parts.launch(_signs.encode_signs, programs, x, message, x.numel(), **shape, TWO_SIDED=two_sided)


def decode_signs(message: Tensor, out: Tensor, block: int, two_sided: bool, add: bool) -> None:
    """Writes or adds a message of signs to float32 `out`."""
    if block > parts.LARGEST_BLOCK:
        return reference.decode_signs(message, out, block, two_sided, add)
    programs, shape = parts.bit_rows(out.numel(), block)
    parts.launch(
        _signs.decode_signs, programs, out, message, out.numel(), **shape, TWO_SIDED=two_sided, ADD=add
    )
