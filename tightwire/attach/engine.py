"""What a plan becomes at run time: buckets, reducers, hooks. Replaced whole when the plan changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.attach.exchange import Exchange
from tightwire.attach.gradients import Gradients
from tightwire.attach.parameters import Parameters
from tightwire.attach.trace import Tracer, traced
from tightwire.buckets import Bucket, plan_layout
from tightwire.compression import Codec, ErrorFeedback
from tightwire.errors import AttachError
from tightwire.plan import Member, Plan, parse_compression
from tightwire.reducers import Averager, Reducer, all_reducer
from tightwire.schedule import Schedule, TensorFacts
from tightwire.sync import Sync
from tightwire.transport import Transport

CONTROL_TAG = 0
Routes = Mapping[str, str]


class Engine(Protocol):
    """Keeps one worker in step with the others."""

    bytes_per_round: int
    rounds: int
    skipped: int
    exposed_s: float

    def accumulating(self, on: bool) -> None:
        """Switches averaging off while gradients accumulate locally."""

    def before_step(self) -> None:
        """Called before the optimizer's step."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step number `step`, from 1."""

    def flush(self) -> None:
        """Makes replicas equal; nothing is in flight afterwards. Every rank."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what must survive a checkpoint, tensors by parameter name."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""

    def close(self) -> None:
        """Takes hooks out and ends threads. Local."""


class Alone:
    """A world of one: nothing to do, exactly as plain PyTorch."""

    bytes_per_round = 0
    rounds = 0
    skipped = 0
    exposed_s = 0.0

    def accumulating(self, on: bool) -> None:  # noqa: D102
        pass

    def before_step(self) -> None:  # noqa: D102
        pass

    def after_step(self, step: int) -> None:  # noqa: D102
        pass

    def flush(self) -> None:  # noqa: D102
        pass

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        pass

    def close(self) -> None:  # noqa: D102
        pass
