"""Random rotations on processors. `reference` says what the call does."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.cpu import _hadamard
from tightwire.kernels.cpu._arrays import numpy_keys


def rotate(x: Tensor, block: int, seed: int, back: bool) -> None:
    """Rotates every block of float32 `x` in place: x ← HD₂HD₁x/d, or with `back` what undoes it."""
    _hadamard.rotate(x.numpy(), block, numpy_keys(seed), numpy_keys(seed + 1), back)
