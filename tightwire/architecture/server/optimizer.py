"""The user's own optimizer, at work on a server's copies of some parameters."""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


def optimizer_for(
    optimizer: Optimizer, copies: Mapping[str, Parameter], names: Mapping[int, str]
) -> Optimizer:
    """Returns an optimizer of the same class and settings for copies of some of its parameters.

    Its state begins as the original's. Hooks and schedulers stay with the original: settings follow by `Settings`.

    Args:
        optimizer: the user's.
        copies: by parameter name.
        names: of the user's parameters, by identity.
    """
    mine = {
        key: value
        for key, value in vars(optimizer).items()
        if not key.endswith("_hooks")
        and key not in ("state", "param_groups", "step", "defaults")  # a scheduler wraps step
    }
    mine["defaults"] = copy.deepcopy(optimizer.defaults)  # torch adds to them when it takes a state
    groups, state = [], collections.defaultdict[Any, Any](dict)
    for group in optimizer.param_groups:
        kept = [(p, copies[names[id(p)]]) for p in group["params"] if names.get(id(p)) in copies]
        groups.append(
            {
                **{k: copy.deepcopy(v) for k, v in group.items() if k != "params"},
                "params": [c for _, c in kept],
            }
        )
        state |= {
            c: {key: _beside(c, key, value, group) for key, value in optimizer.state[p].items()}
            for p, c in kept
            if p in optimizer.state
        }
    server = type(optimizer).__new__(type(optimizer))
    server.__setstate__({**mine, "state": state, "param_groups": groups})
    return server


class Settings:
    """The numbers by which an optimizer's groups are set: rates, momenta, decays, as the worker's schedule has it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._places = list(_places(optimizer))

    @property
    def count(self) -> int:
        """How many there are; as many on every rank."""
        return len(self._places)

    def differences(self, one: Sequence[float], other: Sequence[float]) -> str:
        """Returns in words where two readings differ; empty where they do not."""
        return "; ".join(
            f"{key} of group {number} is {a!r} and {b!r}"
            for (number, key, _), a, b in zip(self._places, one, other, strict=True)
            if a != b and not (a != a and b != b)
        )

    def read(self) -> list[float]:
        """Returns them, in an order that every rank shares."""
        groups = self._optimizer.param_groups  # which loading a state replaces
        return [float(_item(groups[number][key], index)) for number, key, index in self._places]

    def write(self, values: Sequence[float], *, rate: float) -> None:
        """Sets them; the learning rate is multiplied by `rate`."""
        for (number, key, index), value in zip(self._places, values, strict=True):
            self._set(number, key, index, value * rate if key == "lr" else value)

    def _set(self, number: int, key: str, index: int, value: float) -> None:
        group = self._optimizer.param_groups[number]
        old = _item(group[key], index)
        if isinstance(old, Tensor):
            old.fill_(value)
            return
        # A whole number may become a fraction: SGD(lr=1) at half the rate.
        new = value if isinstance(old, int) and not value.is_integer() else type(old)(value)
        if isinstance(group[key], tuple):
            group[key] = (*group[key][:index], new, *group[key][index + 1 :])
        else:
            group[key] = new


def _places(optimizer: Optimizer) -> Iterator[tuple[int, str, int]]:
    """Yields group, key and position of every number that the optimizer's class knows; schedulers add others."""
    for number, group in enumerate(optimizer.param_groups):
        for key in sorted(optimizer.defaults.keys() & group.keys()):
            value = group[key]
            for index in range(len(value)) if isinstance(value, tuple) else (0,):
                if _is_number(_item(value, index)):
                    yield number, key, index


def _item(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, tuple) else value


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dtype.is_floating_point
    return isinstance(value, int | float) and not isinstance(value, bool)


def optimizer_state(optimizer: Optimizer, copies: Mapping[str, Parameter]) -> dict[str, dict[str, Any]]:
    """Returns copies of what an optimizer remembers, by parameter name."""
    return {
        name: {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in optimizer.state[p].items()
        }
        for name, p in copies.items()
        if p in optimizer.state
    }


def load_optimizer_state(
    optimizer: Optimizer, copies: Mapping[str, Parameter], state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Takes up what `optimizer_state` returned, in place of what is remembered of these parameters."""
    for parameter in copies.values():
        optimizer.state.pop(parameter, None)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, kept in state.items():
        parameter = copies[name]
        optimizer.state[parameter] = {
            key: _beside(parameter, key, value, groups[id(parameter)]) for key, value in kept.items()
        }


def _beside(parameter: Tensor, key: str, value: Any, group: Mapping[str, Any]) -> Any:
    """Returns a copy of what an optimizer remembers of a parameter, where the parameter is.

    A count of steps stays in host memory unless the optimizer counts on the device (`torch.optim.Optimizer`,
    `load_state_dict`).
    """
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    counts_on_host = key == "step" and not (group.get("capturable") or group.get("fused"))
    return value.detach().to("cpu" if counts_on_host else parameter.device, copy=True)
