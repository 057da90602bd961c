"""Blocks as rows of a matrix, codes packed in bytes, and floats as their bits."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASKS = {2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FFFFFFFFFFFFFFF}
# As in cpu/_bits.py, where the reasons are.
CEILING = 3.40282e38
FLOOR = 2.0**-100
MAGNITUDE = _MASKS[4]


def block_rows(x: Tensor, block: int) -> list[tuple[int, Tensor]]:
    """Returns the whole blocks as rows, and the rest as one row, each with the index of its first element."""
    whole = x.numel() - x.numel() % block
    parts = [(0, x[:whole].view(-1, block)), (whole, x[whole:].view(1, -1))]
    return [(first, rows) for first, rows in parts if rows.numel() > 0]


def join_parts(parts: list[tuple[Tensor, Tensor]], message: Tensor) -> None:
    """Writes the scales of all parts, and then the codes of all parts."""
    pieces = [piece.reshape(-1).view(torch.uint8) for kind in zip(*parts, strict=True) for piece in kind]
    message.copy_(torch.cat(pieces))


def split_parts(
    message: Tensor, out: Tensor, block: int, scale_bytes: int, bits: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns the rows of `out` with the scales, and the packed codes, of each: the inverse of `join_parts`."""
    split = scale_bytes * -(-out.numel() // block)
    parts = []
    for first, rows in block_rows(out, block):
        num_rows, width = rows.shape
        scales = message[scale_bytes * (first // block) :][: scale_bytes * num_rows]
        codes = message[split + first * bits // 8 :][: num_rows * -(-width * bits // 8)].view(num_rows, -1)
        parts.append((rows, scales, codes))
    return parts


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Packs each row of codes; element i goes to byte i % width, plane i // width."""
    per_byte = 8 // bits
    width = -(-codes.shape[1] // per_byte)
    planes = codes.new_zeros(codes.shape[0], per_byte * width)
    planes[:, : codes.shape[1]] = codes
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)[:, None]
    return (planes.view(-1, per_byte, width) << shifts).sum(1, dtype=torch.uint8).view(-1)


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """Returns the codes of each row of bytes: the inverse of `pack_codes`, but for what fills the last bytes."""
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)[:, None]
    return ((packed[:, None, :] >> shifts) & ((1 << bits) - 1)).reshape(packed.shape[0], -1)


def fold_sum(x: Tensor) -> Tensor:
    """Returns the sum of each row by folding halves, an order that every device can follow."""
    width = 1 << max(0, x.shape[1] - 1).bit_length()
    folded = torch.nn.functional.pad(x, (0, width - x.shape[1]))
    while width > 1:
        width //= 2
        folded = folded[:, :width] + folded[:, width:]
    return folded


def read_as(message: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a copy of part of a message as `dtype`; a view would need it aligned."""
    return message.clone().view(dtype)


def write_or_add(values: Tensor, out: Tensor, add: bool) -> None:
    """Writes or adds values to `out`."""
    if add:
        out.add_(values)
    else:
        out.copy_(values)


def integer_bits(x: Tensor) -> Tensor:
    """Returns the bits of floats as integers, in the same memory."""
    return x.view(_INTEGERS[x.element_size()])


def magnitude_bits(x: Tensor) -> Tensor:
    """Returns the bits of `x` without signs, which order as magnitudes do."""
    return integer_bits(x) & _MASKS[x.element_size()]
