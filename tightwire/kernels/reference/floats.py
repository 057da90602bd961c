"""One byte per element in a floating-point format: powers of two, and 8-bit floats."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.formats import E4M3, E5M2, Fp8
from tightwire.kernels.reference._random import random_bits
from tightwire.kernels.reference._rows import (
    CEILING,
    FLOOR,
    MAGNITUDE,
    block_rows,
    join_parts,
    read_as,
    split_parts,
    write_or_add,
)

FP8_DTYPES = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}


def encode_powers(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes float32 `x` rounded to powers of two, stochastically; `x` keeps the difference."""
    parts = []
    for first, rows in block_rows(x, block):
        magnitude = rows.view(torch.int32).long() & MAGNITUDE
        largest = magnitude.amax(1, keepdim=True)
        finite = largest < 0x7F800000
        top = ((largest >> 23) + 1).clamp(max=254)
        lowest = (top - 127).clamp(min=0)
        random = random_bits(first, rows.numel(), seed, x.device).view_as(magnitude) >> 9
        codes = (((magnitude + random) >> 23).clamp(max=254) - lowest).clamp(min=0)
        codes = torch.where(finite, codes, 0)
        signs = torch.where(finite, rows.signbit(), False).to(torch.uint8) << 7
        rows.sub_(torch.where(finite, _powers(codes, lowest, signs), torch.nan))
        parts.append((torch.where(finite, top, 255).to(torch.uint8), codes.to(torch.uint8) | signs))
    join_parts(parts, message)


def _powers(codes: Tensor, lowest: Tensor, signs: Tensor) -> Tensor:
    values = torch.where(codes > 0, (codes + lowest) << 23, 0).to(torch.int32).view(torch.float32)
    return torch.where(signs > 0, -values, values)


def decode_powers(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds a message of powers of two to float32 `out`."""
    for rows, scales, codes in split_parts(message, out, block, 1, 8):
        top = scales.long()[:, None]
        values = _powers(codes.long() & 127, (top - 127).clamp(min=0), codes & 128)
        write_or_add(torch.where(top < 255, values, torch.nan), rows, add)


def encode_fp8(x: Tensor, message: Tensor, block: int, form: Fp8) -> None:
    """Writes float32 `x` in an 8-bit float format, scaled per block; `x` keeps the difference."""
    parts = []
    for _, rows in block_rows(x, block):
        largest = rows.abs().amax(1, keepdim=True)
        scale = largest.clamp(max=CEILING)
        zero = torch.zeros_like(scale)
        step = torch.where(largest >= FLOOR, scale / form.top, zero)
        inverse = torch.where(largest >= FLOOR, torch.full_like(scale, form.top) / scale, zero)
        finite = largest.isfinite()
        step = torch.where(finite, step, torch.nan)
        scaled = torch.where(finite, rows * inverse, 0.0).clamp(-form.top, form.top)
        rounded = scaled.to(FP8_DTYPES[form])
        rows.sub_(rounded.float() * step)
        parts.append((step, rounded.view(torch.uint8)))
    join_parts(parts, message)


def decode_fp8(message: Tensor, out: Tensor, block: int, form: Fp8, add: bool) -> None:
    """Writes or adds a message of 8-bit floats to float32 `out`."""
    for rows, scales, codes in split_parts(message, out, block, 4, 8):
        values = read_as(codes, FP8_DTYPES[form]).float()
        write_or_add(values * read_as(scales, torch.float32)[:, None], rows, add)
