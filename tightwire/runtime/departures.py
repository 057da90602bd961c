"""How far a plan's replicas and leftovers are from what it was expected to do to them, by what a run itself measures.

The table of extra steps (`planner.quality`) is of other jobs. What a method with feedback loses stands in its theorems
beside the leftover's squared norm, and what local steps lose beside the replicas' drift (Stich and Karimireddy 2020,
arXiv:1909.05350; Koloskova et al. 2020, arXiv:2003.10422): both can be measured, and over what would be expected of
gradients that have nothing to do with each other from step to step, they scale what the table says.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tightwire.averaging import BucketAverager

# Of feedback, what it remembers under this name.
LEFTOVER = "ef"


def squared_leftover(averagers: Iterable[BucketAverager]) -> float:
    """Returns the squared norm of what this worker's messages have left out so far; 0 without feedback."""
    kept = [kinds[LEFTOVER] for a in averagers for kinds in a.memory().values() if LEFTOVER in kinds]
    norms = [torch.linalg.vector_norm(leftover, dtype=torch.float32) for leftover in kept if leftover.numel()]
    return float(torch.stack(norms).square().sum()) if norms else 0.0


def leftover_over_expected(told: Sequence[tuple[float, float]]) -> float | None:
    """Returns the leftover over that of unrelated gradients; None where too little was seen.

    Of g + e, with g the gradient and e the leftover, a codec loses the share ε, which the first step shows, when there
    is no leftover yet: |e|² = ε|g|². Were gradients unrelated, |g + e|² would be |g|² + |e|², and the leftover in
    expectation E ← ε(|g|² + E), which goes to ε/(1 − ε)·|g|². Where steps leave out the same again and again it becomes
    larger, up to (√ε/(1 − √ε))²; where a method adapts to what it left out, smaller.

    Args:
        told: by step, the squared norms of this worker's gradient and of the leftover after its exchange; from the
            first step with feedback on.

    >>> leftover_over_expected([(1.0, 0.5), (1.0, 0.75), (1.0, 0.875)])
    1.0
    """
    if len(told) < 2 or not all(math.isfinite(x) and x > 0 for pair in told for x in pair):
        return None
    share = min(1.0, told[0][1] / told[0][0])
    expected, ratios = told[0][1], []
    for gradient, leftover in told[1:]:
        expected = share * (gradient + expected)
        ratios.append(leftover / expected)
    return statistics.fmean(ratios[len(ratios) // 2 :])


def drift_over_expected(
    apart: float, together: float, *, steps: int, workers: int, noise: float
) -> float | None:
    """Returns how far replicas drift apart in a round over what gradients' noise alone would do; None if not known.

    With G the gradient and n·s the variance of a worker's (s that of the mean, noise = s/|G|²), unrelated steps change
    a worker by H·G and noise of variance H·n·s: |Δ̄|² = H²|G|² + H·s, and |Δᵢ − Δ̄|² = (n − 1)·H·s, so that the
    quotient is (n − 1)·noise/(H + noise). Momentum lengthens both alike. Replicas drift further where their data
    differ, or where they follow different valleys.

    Args:
        apart: mean over workers of |Δᵢ − Δ̄|², what a round changed.
        together: |Δ̄|².
        steps: H.
        workers: n.
        noise: as `gradient_noise` tells it.

    >>> drift_over_expected(0.3, 1.0, steps=8, workers=4, noise=0.5)
    1.7
    """
    if workers < 2 or together <= 0 or noise <= 0 or not (math.isfinite(apart) and math.isfinite(together)):
        return None
    return apart / together * (steps + noise) / ((workers - 1) * noise)
