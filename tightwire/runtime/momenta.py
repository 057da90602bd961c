"""The outer step of 0/1 Adam's local rounds: what momenta moved is averaged, and makes parameters and momentum anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor
from torch.nn import Parameter

from tightwire.buckets import Bucket
from tightwire.optim import OneBitAdam


@final
class Momenta:
    """x ← x_start − ū/(√v + ε) and m ← ū/Σ γₜ, u being what the optimizer's momenta moved (arXiv:2202.06009).

    An `OuterStep`. All that it remembers is the optimizer's, and in the optimizer's checkpoint.
    """

    def __init__(self, optimizer: OneBitAdam, parameters: Mapping[str, Parameter]) -> None:
        """Takes the optimizer, whose variance is frozen and equal on all ranks, and its parameters by name."""
        self._optimizer, self._parameters = optimizer, parameters

    def begin(self, anchors: Sequence[Bucket]) -> None:  # noqa: D102
        self._anchors = anchors

    def measure(self, name: str, start: Tensor, end: Tensor, out: Tensor) -> None:  # noqa: D102
        out.copy_(self._optimizer.moved(self._parameters[name], start))

    def step(self, means: Sequence[Bucket], present: float) -> None:  # noqa: D102
        for anchor, mean in zip(self._anchors, means, strict=True):
            for name, start in anchor.views.items():
                start.sub_(self._optimizer.settle(self._parameters[name], start, mean.views[name]))

    def abandon(self) -> None:  # noqa: D102
        for parameter in self._parameters.values():
            self._optimizer.forget(parameter)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # noqa: D102
        return {}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:  # noqa: D102
        pass
