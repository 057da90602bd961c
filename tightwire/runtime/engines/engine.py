"""The engine contracts: what a plan becomes at run time, replaced whole when the plan changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from tightwire.errors import AttachError
from tightwire.runtime.checkpoint import merged
from tightwire.runtime.step import Options


class Stepping(Protocol):
    """Keeps one worker in step with the others.

    Attributes:
        planned_bytes: payload bytes that this rank sends in the rounds begun so far, by formula.
        rounds: begun so far.
        last_round: the number of the last one whose mean the gradients have; 0 where it is not told.
        skipped: rounds whose mean was not finite, dropped on all ranks alike.
        late: this worker's gradients that came after their round and were dropped.
        exposed_s: how long the last step only waited for others.
        keeps_replicas_equal: whether parameters are equal on all ranks after every step, if all began equal.
        compares_replicas: whether they may be compared whenever a round begins.
        is_silent: whether nothing is exchanged for the step under way, so that what others rely on is looked at later.
    """

    @property
    def planned_bytes(self) -> int: ...  # noqa: D102
    @property
    def rounds(self) -> int: ...  # noqa: D102
    @property
    def last_round(self) -> int: ...  # noqa: D102
    @property
    def skipped(self) -> int: ...  # noqa: D102
    @property
    def late(self) -> int: ...  # noqa: D102
    @property
    def exposed_s(self) -> float: ...  # noqa: D102
    @property
    def keeps_replicas_equal(self) -> bool: ...  # noqa: D102
    @property
    def compares_replicas(self) -> bool: ...  # noqa: D102
    @property
    def is_silent(self) -> bool: ...  # noqa: D102

    def accumulating(self, on: bool) -> None:
        """Switches averaging off while gradients accumulate locally."""

    def skip(self) -> None:
        """Takes part in the pass that others make, with nothing of this worker's."""

    def begin_backward(self) -> None:
        """Called when a backward pass comes to the model's outputs."""

    def before_step(self) -> None:
        """Called before the step of the user's optimizers; gradients are those that it will use."""

    def more_gradients(self) -> None:
        """Called when gradients were computed anew within the step; see `StepListener`.

        Raises:
            AttachError: an engine that exchanges gradients once per step.
        """

    def after_step(self, step: int) -> None:
        """Called after the optimizers' step number `step`, from 1."""

    def wait(self) -> None:
        """Waits for the means of the last backward pass, where they outlive it; `p.grad` is the mean then. Local."""

    def needs_rebuild(self) -> bool:
        """Whether what was measured calls for building the engine anew; the same on every rank that trains."""

    def flush(self) -> None:
        """Makes replicas equal; nothing is in flight afterwards. Every rank.

        A rank that reached the end of its data before others takes part in their rounds until all are here; it counts
        nothing in their means.
        """

    def assemble(self) -> bool:
        """Waits until all ranks come to what they do together, and returns whether they do: else some are past it.

        Every rank, before `consensus`; local where rounds keep all at one step.
        """

    def consensus(self) -> Mapping[str, Tensor] | None:
        """Completes what is in flight and returns the model that all ranks would evaluate, by name. Every rank.

        None: the mean over ranks of their parameters, which whoever asks must compute. Empty: the parameters as they
        are, equal on all ranks.
        """

    def common(self) -> Mapping[str, Tensor]:
        """Returns parameters that all agreed on last, by name, without a message; empty: as they are. Local."""

    def observe(self, *, loss: float | None = None, samples: float | None = None) -> None:
        """Is told the loss of a step, or on how many samples it was made."""

    def weigh(self, weight: float) -> None:
        """Is told this worker's weight in the mean of the next pass.

        Raises:
            AttachError: an engine whose means cannot be weighted.
        """

    def require_leavable(self) -> None:
        """Makes sure that ranks can do without one that leaves for good.

        Raises:
            AttachError: they cannot.
        """

    def staleness(self) -> Mapping[int, int]:
        """Returns how often what was stepped with was so many steps old; empty where nothing ever is."""

    @property
    def is_server(self) -> bool:
        """Whether this rank serves others instead of training."""

    @property
    def flush_is_collective(self) -> bool:
        """Whether all ranks are sure to come to the end of `flush` together; not where some may be gone by then."""

    def close(self) -> None:
        """Takes hooks out, ends threads and gives connections back. Local."""


class Remembering(Protocol):
    """Survives a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what must survive, tensors by parameter name; waits for what is under way."""

    def state_after_meeting(self) -> dict[str, Any]:
        """Returns the same right after `flush`, before anybody goes on. Every rank."""

    def give_back(self) -> None:
        """Leaves with the user's optimizers what others remembered in their place. Every rank, after that; blocks."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned; what is under way is waited for and dropped."""

    def load_merged(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Takes up what `state_dict` returned on all ranks of a run with another number of them.

        Parameters are loaded already, and equal on all ranks: where replicas differed, the mean.
        """

    def resume_at(self, rounds: int) -> None:
        """Counts on from a checkpoint's rounds, and begins anew from the present parameters, equal on all ranks."""


@dataclass(frozen=True)
class Position:
    """How far a worker is.

    Attributes:
        agreed: rounds of whose outcome it has.
        begun: rounds that it has begun; one more than `agreed` within a round that it must not repeat.
        landed: buckets of the round after `agreed` whose means it has stepped with already.
        is_stepped: whether the user's step for that round is made, though it changed nothing yet.
        served: under servers, the last round that is in anything that this worker has.
        under_way: under servers, the round whose answer is awaited, if it may have to be begun anew; 0: none.
        options: of the optimizers' groups in that step, where `is_stepped`.
        is_dropped: whether a round under way is dropped, and the step in which it is counts, whoever has its outcome.
    """

    agreed: int
    begun: int
    landed: int = 0
    is_stepped: bool = False
    served: int = 0
    under_way: int = 0
    options: Sequence[Options] = ()
    is_dropped: bool = False

    @property
    def is_in_step(self) -> bool:
        """Whether the user's step for the round under way is still to come."""
        return self.begun > self.agreed and not self.is_stepped

    def owed(self, *, is_lost: bool) -> list[dict[str, Any]]:
        """Returns the options of the step for a round that is repeated, where the user has made that step."""
        is_repeated = self.begun > self.agreed and not is_lost
        return [dict(options) for options in self.options] if is_repeated else []

    def ahead(self, served: int, *, is_lost: bool) -> int:
        """Returns how many steps more than this worker counts now a newcomer has behind it.

        Args:
            served: the last round that is in anything that any member has: later ones are begun anew, with newcomers.
            is_lost: whether the round under way is dropped on all: the step for it changes nothing, and counts.
        """
        if self.is_stepped:
            return -(self.under_way > served)
        return int(0 < self.under_way <= served or (self.is_in_step and (is_lost or self.is_dropped)))


class Surviving(Protocol):
    """Goes on when a member is lost within a round, and takes newcomers in between rounds.

    After a loss the transport is closed; then come, in this order: `position` and `salvage` of the old engine, its
    `close`, and `take_up` and `go_on` of the new one, which was built over the new world.

    Attributes:
        survives: whether it can.
        calls_rolls: whether a round tells that somebody is about to leave or waits outside, so that all meet. Else a
            worker that is told so leaves, or begins another world, by itself, and the others lose it in a round.
        postpones: whether it makes steps while a round that lost a member waits, as `Membership.postpones` says.
        finished_follow: whether workers whose data is over take the outcome of every round of the others.
        skips_ahead: whether `skip_ahead` counts any steps.
    """

    survives: bool
    calls_rolls: bool
    postpones: bool
    finished_follow: bool
    skips_ahead: bool

    def position(self) -> Position:
        """Returns how far this worker is."""

    def salvage(self) -> dict[str, Any]:
        """Returns what this worker goes on with, in the form of `state_dict`; waits for nothing.

        Rounds under way are as if they had not begun.
        """

    def handed(self, salvaged: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what of it others are given who lack the outcome of a round, or all: plain values and tensors."""

    def outcome(self, salvaged: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
        """Returns the parameters that all who agreed alike have in common; None: the model's own. Shares memory."""

    def catch_up(
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Returns what a worker that lacks the outcome of a round goes on with, from what the source goes on with.

        Args:
            own: what was salvaged here, or the state of a new engine.
            theirs: what the source salvaged.
            is_new: whether this worker lacks everything.

        Returns:
            The state, and the names of parameters that become the source's.
        """

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:
        """Takes up what was salvaged or caught up, after so many rounds agreed on."""

    def skip_ahead(self, steps: int) -> int:
        """Counts steps as made that the others made while this worker, which is new, took up what they have.

        Returns how many, at most up to the next round: a newcomer is there with all others.
        """

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Makes good for what was interrupted.

        Args:
            position: where this worker was.
            is_lost: whether the round under way is dropped, for nobody has anything to repeat.

        Contract: every member; blocks where a round is repeated.
        """


class Engine(Stepping, Remembering, Surviving, Protocol):
    """All three. Engines have `BaseEngine` for a base, not this."""


class BaseEngine:
    """The answers of an engine that steps with nothing old, weighs nobody, and has nothing under way."""

    planned_bytes = 0
    rounds = 0
    last_round = 0
    skipped = 0
    late = 0
    exposed_s = 0.0
    is_server = False
    flush_is_collective = True
    keeps_replicas_equal = False
    compares_replicas = False
    is_silent = False
    survives = False
    calls_rolls = True
    postpones = False
    finished_follow = False
    skips_ahead = False

    def position(self) -> Position:
        """Has agreed on all that it began."""
        return Position(self.rounds, self.rounds)

    def salvage(self) -> dict[str, Any]:
        """Remembers nothing."""
        return {}

    def handed(self, salvaged: Mapping[str, Any]) -> dict[str, Any]:
        """Hands over all."""
        return dict(salvaged)

    def outcome(self, salvaged: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
        """Has the model's own."""
        return None

    def catch_up(
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Remembers nothing."""
        return dict(own), frozenset()

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:
        """Remembers nothing."""

    def skip_ahead(self, steps: int) -> int:
        """Has a round in every step."""
        return 0

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Has nothing to repeat."""

    def accumulating(self, on: bool) -> None:
        """Reads gradients when the optimizer steps, so that it makes no difference."""

    def skip(self) -> None:
        """Meets nobody in a pass."""

    def begin_backward(self) -> None:
        """Meets nobody in a pass."""

    def before_step(self) -> None:
        """Does nothing."""

    def more_gradients(self) -> None:
        """Refuses."""
        raise AttachError(
            "gradients were computed again within one step, by a closure that the optimizer calls several times or "
            "for the second of several optimizers, and this plan exchanges gradients once per step; step with all "
            "optimizers after the last backward pass, or choose bsp or a local method."
        )

    def after_step(self, step: int) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Has nothing to wait for."""

    def needs_rebuild(self) -> bool:
        """Stays as it is."""
        return False

    def flush(self) -> None:
        """Has nothing in flight."""

    def assemble(self) -> bool:
        """Has no need to: all come."""
        return True

    def consensus(self) -> Mapping[str, Tensor] | None:
        """Leaves the mean to whoever asks."""
        return None

    def common(self) -> Mapping[str, Tensor]:
        """Has them in the model."""
        return {}

    def observe(self, *, loss: float | None = None, samples: float | None = None) -> None:
        """Has no use for it."""

    def weigh(self, weight: float) -> None:
        """Refuses."""
        raise AttachError(
            "run.weigh() is for plans that average gradients in backward (bsp, delayed) or parameters in rounds "
            "(local methods); under this plan every worker counts alike."
        )

    def state_dict(self) -> dict[str, Any]:
        """Remembers nothing."""
        return {}

    def state_after_meeting(self) -> dict[str, Any]:
        """Asks as at any other time."""
        return self.state_dict()

    def give_back(self) -> None:
        """Has nothing: the user's optimizers remember for themselves."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remembers nothing."""

    def load_merged(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Takes up the mean of what differs; see `merged`."""
        self.load_state_dict(merged(states))

    def require_leavable(self) -> None:
        """Refuses."""
        raise AttachError(
            "run.leave() is for local methods, whose workers do without each other between rounds; under this plan "
            "call run.finish(), which takes part in the others' steps until all are done."
        )

    def staleness(self) -> Mapping[int, int]:
        """Is never stale."""
        return {}

    def close(self) -> None:
        """Has nothing to end."""


class LoneEngine(BaseEngine):
    """A world of one: nothing to do, exactly as plain PyTorch."""

    def more_gradients(self) -> None:  # noqa: D102
        pass

    def weigh(self, weight: float) -> None:  # noqa: D102
        pass

    def consensus(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {}

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        pass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What an engine counted, to be added to what others did."""

    planned_bytes: int = 0
    rounds: int = 0
    skipped: int = 0
    late: int = 0
    staleness: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, engine: Stepping) -> Counts:
        """Returns an engine's present counts."""
        return cls(
            planned_bytes=engine.planned_bytes,
            rounds=engine.rounds,
            skipped=engine.skipped,
            late=engine.late,
            staleness=dict(engine.staleness()),
        )

    def __add__(self, other: Counts) -> Counts:
        ages = sorted({*self.staleness, *other.staleness})
        return Counts(
            planned_bytes=self.planned_bytes + other.planned_bytes,
            rounds=self.rounds + other.rounds,
            skipped=self.skipped + other.skipped,
            late=self.late + other.late,
            staleness={age: self.staleness.get(age, 0) + other.staleness.get(age, 0) for age in ages},
        )
