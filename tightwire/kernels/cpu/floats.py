"""One byte per element on processors. `reference` says what the calls do."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tightwire.kernels.cpu import _floats
from tightwire.kernels.cpu._arrays import numpy_keys
from tightwire.kernels.formats import Fp8
from tightwire.kernels.reference.floats import FP8_DTYPES


def encode_powers(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes float32 `x` rounded to powers of two, stochastically; `x` keeps the difference."""
    _floats.encode_powers(x.numpy(), message.numpy(), block, numpy_keys(seed))


def decode_powers(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds a message of powers of two to float32 `out`."""
    _floats.decode_powers(message.numpy(), out.numpy(), block, add)


def encode_fp8(x: Tensor, message: Tensor, block: int, form: Fp8) -> None:
    """Writes float32 `x` in an 8-bit float format, scaled per block; `x` keeps the difference."""
    _floats.encode_fp8(x.numpy(), message.numpy(), block, form.top, form.mantissa, form.bias)


def decode_fp8(message: Tensor, out: Tensor, block: int, form: Fp8, add: bool) -> None:
    """Writes or adds a message of 8-bit floats to float32 `out`."""
    _floats.decode_fp8(message.numpy(), out.numpy(), block, _values(form), add)


@functools.cache
def _values(form: Fp8) -> Any:
    """Returns the float32 that each byte stands for."""
    return torch.arange(256, dtype=torch.uint8).view(FP8_DTYPES[form]).float().numpy()
