"""One optimizer step, made bucket by bucket as means arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from tightwire.errors import AttachError
from tightwire.runtime.step import Optimizers, Options, unhooked


class Piecemeal:
    """Makes the user's optimizers step for some parameters now and for others later.

    The optimizers of `torch.optim` treat parameters one by one, so a step of a few and then of the others is the
    step of all, to the bit: all but LBFGS, which looks at all gradients together. Options (learning rate, weight
    decay, …) are those of the moment of `optimizer.step()`, whatever a schedule sets them to meanwhile.

    Raises:
        AttachError: LBFGS, or an optimizer that is not PyTorch's own and may treat parameters together.
    """

    def __init__(self, optimizers: Optimizers, why: str) -> None:
        for optimizer in optimizers.members:
            _require_separable(optimizer, why)
        self._members = [_Member(optimizer) for optimizer in optimizers.members]

    def begin(self) -> None:
        """Remembers the options that are in force now."""
        for member in self._members:
            member.begin()

    @property
    def options(self) -> list[Options]:
        """Those that are remembered, by group."""
        return [options for member in self._members for options in member.options]

    def hold_state(self, land: Callable[[], None]) -> None:
        """Has `land` called before anybody looks at what the optimizers remember; it must end with `release_state`."""
        for member in self._members:
            member.hold_state(land)

    def release_state(self) -> None:
        """Makes `optimizer.state` an ordinary dictionary again."""
        for member in self._members:
            member.release_state()

    @torch.inference_mode(False)
    def step(self, parameters: Iterable[Parameter]) -> None:
        """Makes the step for some parameters, those of them that an optimizer has and that have a gradient."""
        ready = [parameter for parameter in parameters if parameter.grad is not None]
        for member in self._members:
            member.step(ready)


class _Member:
    """One of the optimizers."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._step = unhooked(type(optimizer).step)
        self.options: list[dict[str, Any]] = []
        self._group_of: dict[int, int] = {}
        self._state: Any = None

    def hold_state(self, land: Callable[[], None]) -> None:
        self._state = self._optimizer.state
        self._optimizer.state = _HeldState(self._state, land)  # type: ignore[assignment]

    def release_state(self) -> None:
        if isinstance(self._optimizer.state, _HeldState):  # else the user put another in its place
            self._optimizer.state = self._state

    def begin(self) -> None:
        groups = self._optimizer.param_groups
        self.options = [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
            for group in groups
        ]
        self._group_of = {id(p): number for number, group in enumerate(groups) for p in group["params"]}

    def step(self, parameters: Iterable[Parameter]) -> None:
        present, held = self._optimizer.param_groups, self._optimizer.state
        self._optimizer.param_groups = self._groups(parameters)
        self.release_state()
        try:
            if self._optimizer.param_groups:
                with torch.autocast("cpu", enabled=False):
                    self._step(self._optimizer)
        finally:
            self._optimizer.param_groups, self._optimizer.state = present, held

    def _groups(self, parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
        members: dict[int, list[Parameter]] = {}
        for parameter in parameters:
            if (number := self._group_of.get(id(parameter))) is not None:
                members.setdefault(number, []).append(parameter)
        return [{**self.options[number], "params": of_group} for number, of_group in members.items()]


class _HeldState(MutableMapping[Any, Any]):
    """What an optimizer remembers, while a part of its step is still to be made: whoever looks has it made first."""

    def __init__(self, state: MutableMapping[Any, Any], land: Callable[[], None]) -> None:
        self._state, self._land = state, land

    def _landed(self) -> MutableMapping[Any, Any]:
        self._land()
        return self._state

    def __getitem__(self, key: Any) -> Any:
        return self._landed()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._landed()[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._landed()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._landed())

    def __len__(self) -> int:
        return len(self._landed())


def _require_separable(optimizer: Optimizer, why: str) -> None:
    if isinstance(optimizer, LBFGS):
        raise AttachError(
            f"LBFGS looks at all gradients together, and {why} updates parameters one after another while the "
            "next forward runs; choose another schedule, such as mgwfbp."
        )
    if not type(optimizer).__module__.startswith("torch.optim"):
        raise AttachError(
            f"{type(optimizer).__name__} is not of torch.optim: it may look at all parameters together, and {why} "
            "updates them one after another while the next forward runs; choose another schedule, such as mgwfbp."
        )
