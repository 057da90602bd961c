"""Elements chosen at random on processors. `reference` says what the calls do."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tightwire.kernels._keys import keys_of
from tightwire.kernels._sampling import NOT_FINITE, NUM_BINS, ONE, SHIFT, probability_scale
from tightwire.kernels.cpu import _sampling
from tightwire.kernels.cpu._arrays import numpy_keys


def shared_indices(numel: int, seed: int, out: Tensor) -> None:
    """Writes ascending places below `numel`, one drawn from each of as many stretches as int64 `out` has places."""
    _sampling.shared_indices(numel, numpy_keys(seed), out.numpy())


def sample_by_magnitude(x: Tensor, message: Tensor, k: int, seed: int) -> bool:
    """Moves elements of float32 `x`, drawn by their magnitude, to the message; False, nothing done, if not finite."""
    counts = np.zeros((4, NUM_BINS), np.int32)
    _sampling.histogram(x.numpy().view(np.uint32), np.uint32(SHIFT), counts)
    found = counts.sum(0)
    if found[NOT_FINITE:].any():
        return False
    start = keys_of(seed)[0] % ONE
    _sampling.sample_by_magnitude(x.numpy(), probability_scale(found, k), start, message.numpy())
    return True
