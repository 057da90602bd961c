"""A moment of training that can be gone back to, to the bit: parameters, buffers and what optimizers remember."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tightwire.runtime.agreement import assign
from tightwire.runtime.step import Optimizers


class Snapshot:
    """Copies of one worker's state, made while nothing is under way.

    Learning rates and other options stay as the user set them, for schedulers count the user's steps; so do random
    generators and the order of data, which are the user's too.

    Attributes:
        engine: what the plan's engine remembered; None: engines begin anew.
        is_equal: whether the plan kept what optimizers remember equal on all workers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        engine: dict[str, Any] | None = None,
        *,
        is_equal: bool = False,
    ) -> None:
        """Copies. Local.

        Args:
            model: whose parameters and buffers.
            optimizers: whose states.
            engine: what `Engine.state_dict` returned, which is a copy already.
            is_equal: whether all workers' optimizers remember the same.
        """
        self.engine, self.is_equal = engine, is_equal
        self._model, self._optimizers = model, optimizers
        self._tensors = {name: t.detach().clone() for name, t in _named(model).items()}
        self._states = [
            {p: copy.deepcopy(dict(member.state[p])) for p in _parameters(member) if p in member.state}
            for member in optimizers.members
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back as it was; may be done several times. Local."""
        for name, tensor in _named(self._model).items():
            assign(tensor, self._tensors[name])
        for member, states in zip(self._optimizers.members, self._states, strict=True):
            for parameter in _parameters(member):
                if parameter in states:
                    member.state[parameter] = copy.deepcopy(states[parameter])
                else:
                    member.state.pop(parameter, None)


def _named(model: nn.Module) -> Mapping[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _parameters(optimizer: torch.optim.Optimizer) -> list[Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
