"""Count-sketches on processors. `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.cpu import _sketches
from tightwire.kernels.cpu._arrays import numpy_keys


def add_to_sketch(x: Tensor, table: Tensor, seed: int) -> None:
    """Adds float32 `x` to a table."""
    _sketches.add_to_sketch(x.numpy(), table.numpy(), numpy_keys(seed))


def estimate_from_sketch(table: Tensor, out: Tensor, seed: int) -> None:
    """Writes the estimate of every element to float32 `out`."""
    _sketches.estimate_from_sketch(table.numpy(), out.numpy(), numpy_keys(seed))
