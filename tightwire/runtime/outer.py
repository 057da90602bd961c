"""The outer step of local methods: from the mean pseudo-gradient to where workers go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

from tightwire.buckets import Bucket
from tightwire.runtime.step import Optimizers
from tightwire.sync import Outer

MakeOuter = Callable[[list[Parameter]], Optimizer]


class OuterStep(Protocol):
    """Moves anchors by the mean of what workers changed."""

    def begin(self, anchors: Sequence[Bucket]) -> None:
        """Learns which buckets it moves. Local, once."""

    def measure(self, name: str, start: Tensor, end: Tensor, out: Tensor) -> None:
        """Writes what this worker changed in a round, as it is to be averaged. Local."""

    def step(self, means: Sequence[Bucket], present: float) -> None:
        """Moves the anchors, alike on every rank.

        Args:
            means: of what was measured, one bucket per anchor; may be overwritten.
            present: how many workers' changes they hold.
        """

    def abandon(self) -> None:
        """Learns that a round was dropped on all ranks, which go back to the anchors."""

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Returns copies of what must survive a checkpoint, by parameter name, then by what it is called."""

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes up what `state_dict` returned."""


class Differences:
    """Measures a round by x_start − x_end."""

    def measure(self, name: str, start: Tensor, end: Tensor, out: Tensor) -> None:  # noqa: D102
        torch.sub(start, end, out=out)

    def abandon(self) -> None:  # noqa: D102
        pass


class TakeMean(Differences):
    """x ← x_start − mean: plain local SGD."""

    def begin(self, anchors: Sequence[Bucket]) -> None:  # noqa: D102
        self._anchors = anchors

    def step(self, means: Sequence[Bucket], present: float) -> None:  # noqa: D102
        for anchor, mean in zip(self._anchors, means, strict=True):
            anchor.flat.sub_(mean.flat)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # noqa: D102
        return {}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:  # noqa: D102
        pass


class OuterOptimizer(Differences):
    """Any `torch.optim` optimizer over the anchors, whose gradient is the mean pseudo-gradient x_start − x_end.

    A gradient points uphill and x_start − x_end points back, so the optimizer's own minus moves the anchors to where
    the workers went.
    """

    def __init__(self, make: MakeOuter, in_steps_of: Optimizers | None = None, lr: float = 1.0) -> None:
        """Takes how to make the optimizer.

        Args:
            make: from the anchors, in the order of buckets.
            in_steps_of: the inner optimizer, when pseudo-gradients are divided by its rate γ and the outer rate is
                lr · γ (SlowMo).
            lr: of that product.
        """
        self._make, self._inner, self._lr = make, in_steps_of, lr

    def begin(self, anchors: Sequence[Bucket]) -> None:  # noqa: D102
        self._named = {
            name: Parameter(view, requires_grad=True) for a in anchors for name, view in a.views.items()
        }
        self._optimizer = self._make(list(self._named.values()))

    def step(self, means: Sequence[Bucket], present: float) -> None:  # noqa: D102
        gradients = {name: view for mean in means for name, view in mean.views.items()}
        if self._inner is not None:
            rate = float(self._inner.param_groups[0]["lr"])
            if rate == 0.0:  # the limit of small rates: the mean is taken, and momentum moves nothing
                for name, anchor in self._named.items():
                    anchor.sub_(gradients[name], alpha=self._lr)
                return
            for mean in means:
                mean.flat.div_(rate)
            for group in self._optimizer.param_groups:
                group["lr"] = self._lr * rate
        for name, parameter in self._named.items():
            parameter.grad = gradients[name]
        with torch.enable_grad():
            self._optimizer.step()
        for parameter in self._named.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # noqa: D102
        return {
            name: {key: torch.as_tensor(value).clone() for key, value in kept.items() if value is not None}
            for name, parameter in self._named.items()
            if (kept := self._optimizer.state.get(parameter))
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:  # noqa: D102
        self._optimizer.state.clear()
        for name, parameter in self._named.items():
            if name in state:
                self._optimizer.state[parameter] = {k: v.clone() for k, v in state[name].items()}


class Elastic(Differences):
    """c ← c + Σ α(x − c); the workers' own half of the force is applied by `Parameters` (EASGD)."""

    def __init__(self, force: float) -> None:
        self.force = force

    def begin(self, anchors: Sequence[Bucket]) -> None:  # noqa: D102
        self._anchors = anchors

    def step(self, means: Sequence[Bucket], present: float) -> None:  # noqa: D102
        for anchor, mean in zip(self._anchors, means, strict=True):
            anchor.flat.sub_(mean.flat, alpha=self.force * present)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # noqa: D102
        return {}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:  # noqa: D102
        pass


def outer_step(outer: Outer, make: MakeOuter | None, inner: Optimizers) -> OuterStep:
    """Returns what a policy's outer step is at run time.

    Args:
        outer: what the policy says.
        make: what the user says instead, or None.
        inner: the user's optimizers.
    """
    if make is not None:
        return OuterOptimizer(make)
    if outer.is_mean:
        return TakeMean()

    def sgd(anchors: list[Parameter]) -> Optimizer:
        return SGD(anchors, lr=outer.lr, momentum=outer.momentum, nesterov=outer.nesterov)

    return OuterOptimizer(sgd, inner if outer.in_steps else None, outer.lr)
