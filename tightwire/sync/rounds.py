"""Local methods: several steps alone, then a round in which workers agree on their parameters."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal

from tightwire.answers import Answers, Refusal, text_with
from tightwire.errors import PlanError
from tightwire.sync.sync import EngineKind, PredictorKind, Sync
from tightwire.units import Seconds

State = Literal["kept", "averaged", "reset", "momenta"]
MOST_STEPS = 10**9
# What any policy may do with an optimizer's state.
USUAL = ("kept", "averaged", "reset")
NO_GRACE = Seconds(0)
# What makes a round with a quorum one that waits for all.
ALL_OF_THEM: dict[str, Any] = {"quorum": 1.0, "grace": NO_GRACE}


@dataclass(frozen=True, kw_only=True)
class Outer:
    """The step that turns the mean pseudo-gradient x_start − mean(x_end) into the next x_start: `torch.optim.SGD`.

    Attributes:
        lr: of the outer step; 1 without momentum takes the mean itself.
        momentum: of the outer step.
        nesterov: whether that momentum looks ahead.
        in_steps: the pseudo-gradient is divided by the inner rate γ, and the outer rate is lr·γ (SlowMo).
    """

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False
    in_steps: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf and 0 <= self.momentum < 1):
            raise PlanError(
                f"an outer step with rate {self.lr} and momentum {self.momentum} cannot be: the rate is above 0, the "
                "momentum at least 0 and below 1, as in diloco:64,outer_lr=0.7,outer_momentum=0.9."
            )

    @property
    def is_mean(self) -> bool:
        """Whether the step takes the mean as it is."""
        return self.lr == 1.0 and self.momentum == 0.0


@dataclass(frozen=True, kw_only=True)
class Trend:
    """How far training went, for policies whose rounds follow it.

    Attributes:
        loss: its mean since the length of rounds was chosen last, over that of the first round.
        rate: the learning rate, over the highest so far.
        rate_fell: whether it is lower than when the length was chosen last.
    """

    loss: float
    rate: float = 1.0
    rate_fell: bool = False


@dataclass(frozen=True, kw_only=True)
class NormGuard:
    """What keeps odd pseudo-gradients out of a mean.

    Attributes:
        z: standard deviations above the moving mean of norms from which a pseudo-gradient does not count.
        clip: norm that the mean is shortened to.
    """

    z: float
    clip: float

    def __post_init__(self) -> None:
        if not (self.z > 0 and self.clip > 0):
            raise PlanError(
                f"a guard with z={self.z} and clip={self.clip} lets nothing through: both are above 0, as in "
                "edit:64,z=3,clip=10."
            )


@dataclass(frozen=True, kw_only=True)
class Quorum:
    """When a round ends without the slow: a share of those that train has arrived, and a grace is over.

    Attributes:
        share: of the workers that train, below 1.
        grace_s: seconds for which the others are waited for once so many are there.
    """

    share: float
    grace_s: float

    def count(self, training: int) -> int:
        """Returns how many must have arrived, of those that train.

        >>> [Quorum(share=0.75, grace_s=0).count(n) for n in (1, 2, 3, 4, 8)]
        [1, 2, 3, 3, 6]
        """
        return math.ceil(self.share * training - 1e-9)


@dataclass(frozen=True)
class Rounds(Sync, abc.ABC):
    """A local method. What travels is the pseudo-gradient x_start − x_end, so any codec serves.

    Class attributes:
        by_fragment: whether fragments of the model may agree in turn (streaming).
        elastic: whether workers are drawn to a centre instead of starting again from it.
        weighs_samples: whether a worker counts in the mean by the samples it trained on.
    """

    engine: ClassVar[EngineKind] = "rounds"
    predictor: ClassVar[PredictorKind] = "rounds"
    by_fragment: ClassVar[bool] = False
    elastic: ClassVar[bool] = False
    weighs_samples: ClassVar[bool] = False

    @property
    def deviation(self) -> float:  # noqa: D102
        return float(self.steps_per_round)

    def steps_after(self, trend: Trend, last: int) -> int:
        """Returns the length of rounds from now on, where the loss decides it.

        Args:
            trend: how far training went.
            last: their length until now.
        """
        return self.steps_per_round

    @property
    def steps_between_lengths(self) -> int:
        """How many steps a length lasts at least, where the loss decides it."""
        return 1

    def steps_of(self, round_number: int) -> int:
        """Returns the length of a round, counted from 1, where the loss does not decide it."""
        return self.steps_per_round

    @property
    def optimizer_state(self) -> State:
        """What becomes of the optimizer's state in a round: each worker's own is kept, averaged, or reset.

        Under `momenta` what travels is what momenta moved, whose mean makes the momentum anew (0/1 Adam).
        """
        return "kept"

    @property
    def state_periods(self) -> tuple[int, int]:
        """Rounds from one average of first moments to the next, and of second moments, where state is averaged."""
        return 1, 1

    @property
    def outer(self) -> Outer:
        """The step that follows the mean."""
        return Outer()

    @property
    def is_eager(self) -> bool:
        """Whether a worker steps with its own change before the mean of all is there."""
        return False

    @property
    def guard(self) -> NormGuard | None:
        """What keeps odd pseudo-gradients out of the mean, or None."""
        return None

    @property
    def roll_numbers(self) -> int:
        """The sum of reported losses, and how many; under a guard also how many norms, their sum, that of squares."""
        return 5 if self.guard is not None else super().roll_numbers

    @property
    def has_outer_step(self) -> bool:  # noqa: D102
        return not self.outer.is_mean

    @property
    def quorum_of(self) -> Quorum | None:
        """When a round ends without the slow; None: all are waited for."""
        return None

    def awaited(self, workers: int) -> int:
        """Returns how many must have arrived for a round to end."""
        return workers if self.quorum_of is None else self.quorum_of.count(workers)

    @property
    def grace_s(self) -> float:  # noqa: D102
        return math.inf if self.quorum_of is None else self.quorum_of.grace_s

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses what a round that ends without the slow cannot do for them."""
        if self.quorum_of is None:
            return super().refusal(plan)
        whole = text_with(plan, sync=str(replace(self, **ALL_OF_THEM)))
        if not plan.architecture.agrees:
            return Refusal(
                reason=f"{self} ends a round when a quorum of all workers is there, and over {plan.architecture} "
                "nobody waits for more than its neighbours.",
                nearest=(whole, text_with(plan, architecture="allreduce")),
            )
        if plan.schedule.name == "streaming":
            return Refusal(
                reason=f"{self} has one round under way at a time, which the slow join late, and {plan.schedule} has "
                "one per fragment.",
                nearest=(whole, text_with(plan, schedule="fusion")),
            )
        if robust := [stage for stage in plan.compression if stage.name in ("median", "trimmed")]:
            return Refusal(
                reason=f"{self} has the absent bring zeros of no weight, and {robust[0]} would take them for what "
                "workers say.",
                nearest=(whole, text_with(plan, compression="none")),
            )
        return super().refusal(plan)

    def takes_part(self, rank: int, workers: int, seed: int) -> bool:
        """Whether a worker's steps count in the round with this seed."""
        return True


@dataclass(frozen=True)
class OuterRounds(Rounds, abc.ABC):
    """Rounds of one length, which an outer Nesterov step closes: DiLoCo and its kin.

    Args:
        H: inner steps per round.
        outer_lr: rate of the outer step.
        outer_momentum: Nesterov momentum of the outer step.
        overlap: steps made while the exchange travels.
        state: of the inner optimizer.
        quorum: share of the workers with which a round ends without the others.
        grace: for how long it waits for them all the same.
    """

    by_fragment: ClassVar[bool] = True

    H: int
    _: KW_ONLY
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    overlap: int = 0
    state: str = "kept"
    quorum: float = 1.0
    grace: Seconds = NO_GRACE

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require_late(self, self.overlap, self.H)
        require_state(self, self.state, self.overlap)
        object.__setattr__(self, "grace", Seconds(self.grace))
        require_quorum(self, self.quorum_of, self.grace, self.overlap == 0 and self.state == "kept")
        _ = self.outer

    @property
    def quorum_of(self) -> Quorum | None:  # noqa: D102
        return Quorum(share=self.quorum, grace_s=self.grace) if self.quorum != 1 else None

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H

    @property
    def steps_late(self) -> int:  # noqa: D102
        return self.overlap

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)

    @property
    def outer(self) -> Outer:  # noqa: D102
        return Outer(lr=self.outer_lr, momentum=self.outer_momentum, nesterov=self.outer_momentum > 0)


def require_steps(policy: Sync, argument: str, steps: int, least: int = 1) -> None:
    """Makes sure that a number of steps can be one.

    Raises:
        PlanError: it is below the least, or more than anybody trains for.
    """
    if steps > MOST_STEPS:
        raise PlanError(
            f"{policy}: {argument} is more steps than anybody trains for; at most {MOST_STEPS:,}."
        )
    if steps < least:
        raise PlanError(
            f"{policy} would never agree: {argument} is a number of optimizer steps, at least {least}, seen {steps}."
        )


def require_state(policy: Sync, state: str, steps_late: int = 0, known: Sequence[str] = USUAL) -> State:
    """Returns `state` if it is one of those known to the policy, and can be had.

    Raises:
        PlanError: an unknown one, or one that cannot be had while the exchange is late.
    """
    if state not in known:
        raise PlanError(f"{policy}: state={state!r} is none of {', '.join(known)}.")
    if steps_late and state != "kept":
        raise PlanError(
            f"{policy} goes on while its exchange travels, so the optimizer's state cannot be {state} then; "
            "leave out state, or overlap."
        )
    return state  # type: ignore[return-value]


def require_quorum(policy: Sync, quorum: Quorum | None, grace_s: float, is_plain: bool) -> None:
    """Makes sure that rounds can end without the slow.

    Args:
        policy: which is to have such rounds.
        quorum: with which they end.
        grace_s: as it was asked for.
        is_plain: whether all wait for the exchange and keep their optimizer's state.

    Raises:
        PlanError: they cannot.
    """
    if not 0 <= grace_s < math.inf or (quorum is None and grace_s):
        raise PlanError(
            f"{policy}: grace is for how long a quorum waits for the others; write for example quorum=0.75,grace=5s."
        )
    if quorum is None:
        return
    if not 0 < quorum.share < 1:
        raise PlanError(f"{policy}: quorum is a share of the workers, above 0 and at most 1 (all).")
    if not is_plain:
        raise PlanError(
            f"{policy}: workers that are late join the next round between two of their steps, with an optimizer of "
            "their own, in rounds of one length; leave out overlap, state and periods, or quorum."
        )


def require_late(policy: Sync, overlap: int, steps_per_round: int) -> None:
    """Makes sure that an exchange lands before the next one of the same parameters begins.

    Raises:
        PlanError: a negative number of steps, or more than a round has.
    """
    if not 0 <= overlap <= steps_per_round:
        raise PlanError(
            f"{policy}: an exchange cannot travel for {overlap} steps; from 0 (all wait) to {steps_per_round} (it "
            "lands when the next round begins)."
        )
