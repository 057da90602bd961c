"""The engine contract: what a plan becomes at run time, replaced whole when the plan changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from tightwire.errors import AttachError


class Engine(Protocol):
    """Keeps one worker in step with the others. Engines have `BaseEngine` for a base, not this."""

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
    def late(self) -> int:
        """This worker's gradients that came after their round and were dropped."""

    @property
    def exposed_s(self) -> float:
        """How long the last step only waited for others."""

    def accumulating(self, on: bool) -> None:
        """Switches averaging off while gradients accumulate locally."""

    def before_step(self) -> None:
        """Called before the optimizer's step."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step number `step`, from 1."""

    def wait(self) -> None:
        """Waits for the means of the last backward pass, where they outlive it; `p.grad` is the mean then. Local."""

    def needs_rebuild(self) -> bool:
        """Whether what was measured calls for building the engine anew; the same on every rank, which all ask."""

    def flush(self) -> None:
        """Makes replicas equal; nothing is in flight afterwards. Every rank.

        A rank that reached the end of its data before others takes part in their rounds until all are here; it counts
        nothing in their means.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns what must survive a checkpoint, tensors by parameter name."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""

    def resume_at(self, rounds: int) -> None:
        """Counts on from a checkpoint's rounds, remembering nothing else of it."""

    def close(self) -> None:
        """Takes hooks out and ends threads. Local."""

    def observe(self, *, loss: float | None = None, samples: float | None = None) -> None:
        """Is told the loss of a step, or on how many samples it was made."""

    def consensus(self) -> Mapping[str, Tensor] | None:
        """Lands what is in flight and returns the model that all ranks would evaluate, by parameter name. Every rank.

        None: the mean over ranks of their parameters, which whoever asks must compute. Empty: the parameters as they
        are, equal on all ranks.
        """

    def is_server(self) -> bool:
        """Whether this rank serves others instead of training."""

    def flush_is_collective(self) -> bool:
        """Whether all ranks are sure to come to the end of `flush` together; not where some may be gone by then."""

    def staleness(self) -> Mapping[int, int]:
        """Returns how often what was stepped with was so many steps old; empty where nothing ever is."""

    def leave(self) -> None:
        """Tells the others, with the next round, that this rank will leave for good; `flush` follows.

        Raises:
            AttachError: an engine whose ranks cannot do without each other.
        """

    def requests_flush(self) -> bool:
        """Whether the round just ended said that somebody leaves, so that all must `flush` now."""


class BaseEngine:
    """The answers of an engine that listens to nothing, steps with nothing old, and may have unequal replicas."""

    late = 0

    def wait(self) -> None:
        """Has nothing to wait for."""

    def needs_rebuild(self) -> bool:
        """Stays as it is."""
        return False

    def observe(self, *, loss: float | None = None, samples: float | None = None) -> None:
        """Has no use for it."""

    def consensus(self) -> Mapping[str, Tensor] | None:
        """Leaves the mean to whoever asks."""
        return None

    def is_server(self) -> bool:
        """Trains."""
        return False

    def flush_is_collective(self) -> bool:
        """Waits for all ranks where it flushes."""
        return True

    def staleness(self) -> Mapping[int, int]:
        """Is never stale."""
        return {}

    def leave(self) -> None:
        """Cannot."""
        raise AttachError(
            "run.leave() is for local methods, whose workers do without each other between rounds; under this plan "
            "call run.finish(), which takes part in the others' steps until all are done."
        )

    def requests_flush(self) -> bool:
        """Never does."""
        return False


class Retired(BaseEngine):
    """What remains of an engine that another one replaced: its counts, not its memory."""

    exposed_s = 0.0

    def __init__(self, engine: Engine) -> None:
        self.planned_bytes, self.rounds, self.skipped = engine.planned_bytes, engine.rounds, engine.skipped
        self.late = engine.late
        self._staleness = dict(engine.staleness())

    def staleness(self) -> Mapping[int, int]:
        """Returns what it was."""
        return self._staleness

    def accumulating(self, on: bool) -> None:
        """Has no part in it any more."""

    def before_step(self) -> None:
        """Has no part in it any more."""

    def after_step(self, step: int) -> None:
        """Has no part in it any more."""

    def flush(self) -> None:
        """Has nothing in flight."""

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: its successor took it over."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has no part in it any more."""

    def resume_at(self, rounds: int) -> None:
        """Has no part in it any more."""

    def close(self) -> None:
        """Is closed."""


class Alone(BaseEngine):
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

    def consensus(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {}
