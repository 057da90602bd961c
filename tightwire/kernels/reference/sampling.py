"""Elements chosen at random."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._keys import keys_of
from tightwire.kernels._sampling import NUM_BINS, ONE, SHIFT, probability_scale
from tightwire.kernels.reference._random import random_bits
from tightwire.kernels.reference._rows import magnitude_bits
from tightwire.kernels.reference.sparse import write_counted


def shared_indices(numel: int, seed: int, out: Tensor) -> None:
    """Writes ascending places below `numel`, one drawn from each of as many stretches as int64 `out` has places."""
    bounds = torch.arange(out.numel() + 1, device=out.device).mul_(numel)
    bounds.div_(max(out.numel(), 1), rounding_mode="floor")
    drawn = random_bits(0, out.numel(), seed, out.device)
    out.copy_(bounds[:-1] + ((drawn * bounds.diff()) >> 32))


def sample_by_magnitude(x: Tensor, message: Tensor, k: int, seed: int) -> bool:
    """Moves elements of float32 `x`, drawn by their magnitude, to the message; `x` keeps the difference.

    The probabilities p = min(1, λ|x|), of which λ makes the sum at most k, are summed over the elements; where the sum
    passes a whole number, shifted by a random start, the element is sent as x/p: systematic sampling. The message is as
    that of `select_above`.

    Returns:
        False, with nothing done, if `x` is not finite.
    """
    if not x.isfinite().all():
        return False
    bins = magnitude_bits(x) >> SHIFT
    scale = probability_scale(torch.bincount(bins, minlength=NUM_BINS).cpu().numpy(), k)
    magnitude = x.abs().double()
    probability = torch.where(magnitude == 0, 0, (magnitude * scale).clamp(max=ONE - 1).long() + 1)
    sums = probability.cumsum(0) + keys_of(seed)[0] % ONE
    indices = ((sums // ONE) > ((sums - probability) // ONE)).nonzero().flatten()
    values = x[indices].double() * (float(ONE) / probability[indices].double())
    limit = torch.finfo(torch.float32).max
    sent = values.clamp(-limit, limit).float()
    write_counted(indices, sent, message, k)
    x[indices] -= sent
    return True
