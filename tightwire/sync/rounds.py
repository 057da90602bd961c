"""Local methods: several steps alone, then a round in which workers agree on their parameters."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from tightwire.errors import PlanError
from tightwire.sync.sync import EngineKind, PredictorKind, Sync

State = Literal["kept", "averaged", "reset", "momenta"]
MOST_STEPS = 10**9
# What any policy may do with an optimizer's state.
USUAL = ("kept", "averaged", "reset")


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

    def steps_after(self, loss_ratio: float) -> int:
        """Returns the length of the next round.

        Args:
            loss_ratio: mean loss in the round just ended, over that in the first.
        """
        return self.steps_per_round

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
    """

    by_fragment: ClassVar[bool] = True

    H: int
    _: KW_ONLY
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    overlap: int = 0
    state: str = "kept"

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require_late(self, self.overlap, self.H)
        require_state(self, self.state, self.overlap)
        _ = self.outer

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
