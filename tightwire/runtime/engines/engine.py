"""The engine contract: what a plan becomes at run time, replaced whole when the plan changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Engine(Protocol):
    """Keeps one worker in step with the others."""

    @property
    def planned_bytes(self) -> int:
        """Payload bytes that this rank sends in the rounds begun so far, by formula."""

    @property
    def rounds(self) -> int:
        """Rounds begun so far."""

    @property
    def skipped(self) -> int:
        """Rounds whose mean was not finite, dropped on all ranks alike."""

    @property
    def exposed_s(self) -> float:
        """How long the last step only waited for others."""

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

    def resume_at(self, rounds: int) -> None:
        """Counts on from a checkpoint's rounds, remembering nothing else of it."""

    def close(self) -> None:
        """Takes hooks out and ends threads. Local."""


class Alone:
    """A world of one: nothing to do, exactly as plain PyTorch."""

    planned_bytes = 0
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

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        pass

    def close(self) -> None:  # noqa: D102
        pass
