"""One optimizer step, made bucket by bucket as means arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from tightwire.errors import AttachError


class Piecemeal:
    """Makes the user's optimizer step for some parameters now and for others later.

    The optimizers of `torch.optim` treat parameters one by one, so a step of a few and then of the others is the
    step of all, to the bit: all but LBFGS, which looks at all gradients together. Options (learning rate, weight
    decay, …) are those of the moment of `optimizer.step()`, whatever a schedule sets them to meanwhile.

    Raises:
        AttachError: LBFGS, or an optimizer that is not PyTorch's own and may treat parameters together.
    """

    def __init__(self, optimizer: Optimizer, why: str) -> None:
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
        self._optimizer = optimizer
        self._step = _unhooked(type(optimizer).step)
        self._options: list[dict[str, Any]] = []
        self._group_of: dict[int, int] = {}

    def begin(self) -> None:
        """Remembers the options that are in force now."""
        groups = self._optimizer.param_groups
        self._options = [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
            for group in groups
        ]
        self._group_of = {id(p): number for number, group in enumerate(groups) for p in group["params"]}

    @torch.inference_mode(False)
    def step(self, parameters: Iterable[Parameter]) -> None:
        """Makes the step for some parameters, those of them that the optimizer has and that have a gradient."""
        present = self._optimizer.param_groups
        self._optimizer.param_groups = self._groups(parameters)
        try:
            if self._optimizer.param_groups:
                with torch.autocast("cpu", enabled=False):
                    self._step(self._optimizer)
        finally:
            self._optimizer.param_groups = present

    def _groups(self, parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
        members: dict[int, list[Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is not None and (number := self._group_of.get(id(parameter))) is not None:
                members.setdefault(number, []).append(parameter)
        return [{**self._options[number], "params": of_group} for number, of_group in members.items()]


def _unhooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the step without the hooks, which are called once per step and not once per bucket."""
    return getattr(step, "__wrapped__", step) if getattr(step, "hooked", False) else step


def refuse_closure(optimizer: Optimizer, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Refuses a closure: it would compute the loss from parameters that are yet to be updated.

    Raises:
        AttachError: there is one.
    """
    if any(a is not None for a in args[1:]) or kwargs.get("closure") is not None:
        raise AttachError(
            "optimizer.step(closure) evaluates the model within the step, and this plan's step goes on after it; call "
            "backward yourself and step() without a closure, or choose another schedule, such as mgwfbp."
        )
