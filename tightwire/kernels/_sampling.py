"""By how much magnitudes are scaled to be probabilities that sum to a given number: one definition for every device."""

from __future__ import annotations

from typing import Any

# Float32 magnitudes are counted by this many leading bits: exponent, and the first three of the fraction.
SHIFT = 20
NUM_BINS = 1 << (31 - SHIFT)
# The first of them that counts infinities and NaN.
NOT_FINITE = 0x7F800000 >> SHIFT
# Probabilities are counted in whole units of 1/ONE, so that their sums are exact in any order.
LOG_ONE = 30
ONE = 1 << LOG_ONE


def probability_scale(counts: Any, k: int) -> float:
    """Returns λ·ONE such that the probabilities min(1, λ|x|) sum to at most k; infinity where all may be sent.

    Equation 6 of arXiv:1710.09854: the larger ones are sent for sure, the others by their magnitude. Solved on a
    histogram, every magnitude taken as the upper end of its bin, which is at most an eighth above it.

    Args:
        counts: (NUM_BINS,) of finite magnitudes by their leading bits; zeros are in the first bin.
        k: what the probabilities may sum to.
    """
    import numpy as np

    filled = np.flatnonzero(counts)[::-1]
    last = ((filled + 1) << SHIFT) - 1
    sizes, ends = (
        counts[filled].astype(np.float64),
        last.astype(np.uint32).view(np.float32).astype(np.float64),
    )
    budget = k - sizes.sum() / ONE
    if sizes.sum() <= k:
        return float("inf")
    mass = sizes * ends
    rest = mass[::-1].cumsum()[::-1]  # from the small end: large ones would swallow them
    sure = sizes.cumsum() - sizes
    scales = (budget - sure) / rest
    fits = (scales * ends <= 1) & (scales > 0)
    return float(scales[np.argmax(fits)]) * ONE if fits.any() else 0.0
