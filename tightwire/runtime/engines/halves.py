"""Half batches: a provisional step with the first, and once the second is here the whole one in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tightwire.runtime.engines.delayed import DelayedEngine

Means = Mapping[str, Tensor | None]


@dataclass(frozen=True)
class _Origin:
    """Where a whole step starts: parameters, the optimizer's state, and the mean of the half that is there."""

    parameters: Mapping[str, Tensor]
    states: Mapping[str, dict[str, Any]]
    half: Means


class HalfEngine(DelayedEngine):
    """A step after an odd pass is whole, one after an even pass is provisional (acco).

    Means come one pass late, as under `delayed:1`: after an even pass that of the odd one, which leads to a provisional
    step; after the next odd pass that of the even one, which is made a whole step with it, from where the provisional
    one started. Where a member is lost, a half that is there counts whole, as at the end.
    """

    _origin: _Origin | None = None

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        start = self._origin
        kept = None if start is None else {
            "parameters": {name: value.clone() for name, value in start.parameters.items()},
            "states": {name: _copied(state) for name, state in start.states.items()},
            "half": {name: None if mean is None else mean.clone() for name, mean in start.half.items()},
        }  # fmt: skip
        return {**super().state_dict(), "start": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        kept = state.get("start")
        self._origin = None if kept is None else _Origin(kept["parameters"], kept["states"], kept["half"])

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        super().resume_at(rounds)
        self._origin = None

    def salvage(self) -> dict[str, Any]:  # noqa: D102
        state = super().salvage()
        self._origin = None
        return state

    def _arrived(self, means: Means | None) -> Means | None:
        """Turns what arrived into what is stepped with, and goes to where that step starts."""
        if self._steps % 2 == 0:
            self._origin = self._remember(means or dict.fromkeys(self._parameters))
            return means
        return self._whole(means)

    def _step_with(self, means: Means) -> None:
        """Steps with the last means: a half that nothing follows counts whole."""
        super()._step_with(self._whole(means) or means)

    def _whole(self, means: Means | None) -> Means | None:
        """Takes the provisional step back; returns the mean of both halves."""
        if (start := self._origin) is None:
            return means
        self._origin = None
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(start.parameters[name])
                self._context.optimizers.remember(parameter, start.states[name])
        return {name: _mean(start.half[name], means[name] if means else None) for name in self._parameters}

    @torch.no_grad()
    def _remember(self, half: Means) -> _Origin:
        optimizers = self._context.optimizers
        return _Origin(
            {name: parameter.detach().clone() for name, parameter in self._parameters.items()},
            {name: _copied(optimizers.state_of(parameter)) for name, parameter in self._parameters.items()},
            {name: None if mean is None else mean.clone() for name, mean in half.items()},
        )


def _mean(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Returns the mean of two halves; of one that is not there the other is the whole."""
    if a is None or b is None:
        return b if a is None else a
    return (a + b).div_(2)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
