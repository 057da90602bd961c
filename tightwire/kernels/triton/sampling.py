"""Elements chosen at random on CUDA; `reference` says what the calls do."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._keys import keys_of
from tightwire.kernels._sampling import NOT_FINITE, NUM_BINS, ONE, SHIFT, probability_scale
from tightwire.kernels._scratch import scratch_tensor
from tightwire.kernels.triton import _parts as parts
from tightwire.kernels.triton import _sampling
from tightwire.kernels.triton.sparse import count_digits


def sample_by_magnitude(x: Tensor, message: Tensor, k: int, seed: int) -> bool:
    """Moves elements of float32 `x`, drawn by their magnitude, to the message; False, nothing done, if not finite."""
    counts = torch.zeros(NUM_BINS, dtype=torch.int32, device=x.device)
    state = scratch_tensor("kth", 2, torch.int64, x.device).zero_()
    beyond = count_digits(x, state, counts, SHIFT, 31 - SHIFT)
    found = counts.cpu().numpy()
    found[0] -= beyond
    if found[NOT_FINITE:].any():
        return False
    message.zero_()
    scale = torch.tensor([probability_scale(found, k)], dtype=torch.float64, device=x.device)
    num_tiles = -(-x.numel() // parts.TILE)
    sums, ends = scratch_tensor("tiles", 2 * num_tiles, torch.int64, x.device).view(2, num_tiles)
    parts.launch_by_tile(_sampling.sum_probabilities, x, scale, sums, x.numel())
    torch.cumsum(sums, 0, out=ends)
    parts.launch_by_tile(
        _sampling.sample_by_magnitude, x, scale, sums, ends, message, x.numel(), keys_of(seed)[0] % ONE, k
    )
    return True


def shared_indices(numel: int, seed: int, out: Tensor) -> None:
    """Writes ascending places below `numel`, one drawn from each of as many stretches as int64 `out` has places."""
    parts.launch_by_tile(_sampling.shared_indices, out, numel, *parts.keys(seed), out.numel())
