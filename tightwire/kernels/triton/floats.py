"""One byte per element on CUDA; `reference` says what the calls do."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._scratch import per_thread
from tightwire.kernels.formats import Fp8
from tightwire.kernels.reference import floats as reference
from tightwire.kernels.reference.floats import FP8_DTYPES
from tightwire.kernels.triton import _floats
from tightwire.kernels.triton import _parts as parts


def encode_powers(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes float32 `x` rounded to powers of two, stochastically; `x` keeps the difference."""
    if block > parts.LARGEST_BLOCK:
        return reference.encode_powers(x, message, block, seed)
    programs, shape = parts.rows(x.numel(), block)
    parts.launch(_floats.encode_powers, programs, x, message, x.numel(), *parts.keys(seed), **shape)


def decode_powers(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds a message of powers of two to float32 `out`."""
    if block > parts.LARGEST_BLOCK:
        return reference.decode_powers(message, out, block, add)
    programs, shape = parts.rows(out.numel(), block)
    parts.launch(_floats.decode_powers, programs, out, message, out.numel(), **shape, ADD=add)


def encode_fp8(x: Tensor, message: Tensor, block: int, form: Fp8) -> None:
    """Writes float32 `x` in an 8-bit float format, scaled per block; `x` keeps the difference."""
    if block > parts.LARGEST_BLOCK:
        return reference.encode_fp8(x, message, block, form)
    programs, shape = parts.rows(x.numel(), block)
    constants = {"MANTISSA": form.mantissa, "BIAS": form.bias}
    parts.launch(_floats.encode_fp8, programs, x, message, x.numel(), form.top, **shape, **constants)


def decode_fp8(message: Tensor, out: Tensor, block: int, form: Fp8, add: bool) -> None:
    """Writes or adds a message of 8-bit floats to float32 `out`."""
    if block > parts.LARGEST_BLOCK:
        return reference.decode_fp8(message, out, block, form, add)
    programs, shape = parts.rows(out.numel(), block)
    parts.launch(
        _floats.decode_fp8, programs, out, message, _values(form, out.device), out.numel(), **shape, ADD=add
    )


@per_thread
def _values(form: Fp8, device: torch.device) -> Tensor:
    """Returns the float32 that each byte stands for."""
    return torch.arange(256, dtype=torch.uint8).view(FP8_DTYPES[form]).float().to(device)
