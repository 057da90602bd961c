"""One bit per element, and per block what a bit stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.reference._rows import (
    block_rows,
    fold_sum,
    join_parts,
    pack_codes,
    read_as,
    split_parts,
    unpack_codes,
    write_or_add,
)


def encode_signs(x: Tensor, message: Tensor, block: int, two_sided: bool) -> None:
    """Writes the sign bits of float32 `x`, and per block the mean of |x|, or of each sign; `x` keeps the rest."""
    parts = []
    for _, rows in block_rows(x, block):
        negative = rows.signbit()
        sides = [~negative, negative] if two_sided else [torch.ones_like(negative)]
        means = torch.cat([_mean_magnitude(rows, side) for side in sides], 1)
        rows.sub_(torch.where(negative, -means[:, -1:], means[:, :1]))
        parts.append((means, pack_codes(negative.to(torch.uint8), 1)))
    join_parts(parts, message)


def _mean_magnitude(x: Tensor, side: Tensor) -> Tensor:
    magnitude = torch.where(side, x.abs() * (1 / torch.full_like(x[:, :1], x.shape[1])), 0.0)
    more = x.shape[1] / side.sum(1, keepdim=True).clamp(min=1).double()
    mean = (fold_sum(magnitude).double() * more).float()
    largest = x.abs().amax(1, keepdim=True)
    return torch.where(mean > largest, largest, mean)


def decode_signs(message: Tensor, out: Tensor, block: int, two_sided: bool, add: bool) -> None:
    """Writes or adds a message of signs to float32 `out`."""
    for rows, scales, packed in split_parts(message, out, block, 8 if two_sided else 4, 1):
        means = read_as(scales, torch.float32).view(rows.shape[0], -1)
        negative = unpack_codes(packed, 1)[:, : rows.shape[1]].bool()
        write_or_add(torch.where(negative, -means[:, -1:], means[:, :1]), rows, add)
