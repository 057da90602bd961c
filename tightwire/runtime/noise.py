"""How noisy gradients are: measured from what workers computed alone and the mean that they agreed on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

Norms = tuple[float, float]


class NoiseWatch:
    """Takes the squared norms of this worker's gradients and of their mean, in steps of one backward pass each.

    Local; costs two passes over the gradients in each step that it watches.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        """Takes what is trained."""
        self._parameters = [p for p in parameters if p.requires_grad]
        self._handles: list[RemovableHandle] = []
        self._own: list[Tensor] = []
        self._norms: list[Norms] = []

    def begin(self) -> None:
        """Watches from now on."""
        self._handles = [p.register_hook(self._hear) for p in self._parameters]

    def close(self) -> None:
        """Watches no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._own.clear()

    def before_step(self) -> None:
        """Takes in the mean, which is what the optimizer is about to step with."""
        means = [p.grad.detach() for p in self._parameters if p.grad is not None]
        own, self._own = self._own, []
        if own and len(own) == len(means):  # a parameter used twice is heard once; more are several passes
            self._norms.append((float(torch.stack(own).sum()), _squared(means)))

    def told(self) -> list[Norms]:
        """Returns the squared norms by step: the worker's own, and the mean's."""
        return self._norms

    def _hear(self, gradient: Tensor) -> None:
        self._own.append(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32).square())


def gradient_noise(told: Sequence[Sequence[Norms]]) -> float | None:
    """Returns the variance of the mean gradient over the squared norm of what it estimates; None if nothing was seen.

    With n workers, E|g|² = |G|² + n·s and E|ḡ|² = |G|² + s, s being the variance of their mean ḡ: both are solved for
    s and |G|², each averaged over steps first, as their quotient is biased (McCandlish et al. 2018, arXiv:1812.06162,
    appendix A.1, where the noise scale is s times the batch of all over |G|²).

    >>> gradient_noise([[(5.0, 2.0)], [(5.0, 2.0)], [(5.0, 2.0)], [(5.0, 2.0)]])
    1.0

    Args:
        told: by worker, what `NoiseWatch.told` returned.
    """
    workers, steps = len(told), min(map(len, told), default=0)
    if workers < 2 or steps == 0:
        return None
    own = statistics.fmean(norms[step][0] for norms in told for step in range(steps))
    mean = statistics.fmean(norms[step][1] for norms in told for step in range(steps))
    variance = max(0.0, (own - mean) / (workers - 1))
    signal = mean - variance
    if not (math.isfinite(own) and math.isfinite(mean)) or own == 0.0:
        return None
    return min(MOST_NOISE, variance / signal) if signal > variance / MOST_NOISE else MOST_NOISE


# Of a few steps a signal that is smaller cannot be told from none.
MOST_NOISE = 100.0


def _squared(tensors: Sequence[Tensor]) -> float:
    norms = torch._foreach_norm([tensor.float() for tensor in tensors])
    return float(torch.stack(norms).square().sum())
