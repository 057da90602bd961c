"""Policies that a parameter server carries out: workers send gradients, and it decides who goes on when."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Self

from tightwire.answers import Answers, Refusal, text_with
from tightwire.errors import PlanError
from tightwire.sync.sync import EngineKind, PredictorKind, Sync

# How far workers are taken to run ahead where nothing bounds it.
UNBOUNDED_LEAD = 8
# What a server's way of answering changes where rounds are those of bsp.
LATE_ANSWER = 0.5
# How many gradients make a round that others wait for.
QUORUM = 2
# For what is asked of a policy where the number of workers is not known.
MANY_WORKERS = 2**20


@dataclass(frozen=True)
class Served(Sync, abc.ABC):
    """What a server does with gradients. A worker's *clock* counts the steps whose gradients it has sent.

    Class attributes:
        is_served: always; what is not a `Served` may ask without importing it.
        sends_changes: whether workers step by themselves, and send what `steps_per_round` of their steps changed in
            place of a gradient.
    """

    is_served: ClassVar[bool] = True
    engine: ClassVar[EngineKind] = "server"
    predictor: ClassVar[PredictorKind] = "server"
    needs_agreement: ClassVar[bool] = False
    sends_changes: ClassVar[bool] = False

    @abc.abstractmethod
    def quorum(self, workers: int) -> int:
        """Returns how many gradients of one round make an update, their mean; 0: each makes one by itself.

        Raises:
            PlanError: too few workers.
        """

    @property
    def lead(self) -> int | None:
        """How many clocks a worker may be ahead of the slowest and go on; None: any number."""
        return None

    @property
    def compensation(self) -> float:
        """The λ of delay compensation; 0: none."""
        return 0.0

    def rate(self, staleness: int, workers: int) -> float:
        """Returns by what the worker's learning rate is multiplied in an update from one gradient.

        Args:
            staleness: updates by others between the worker's read and this update.
            workers: how many there are.
        """
        return 1.0 / workers

    def fitted(self, workers: int) -> Self:
        """Returns the policy as it is among as many workers as there happen to be, where they come and go."""
        return self

    @property
    def updates_alone(self) -> bool:  # noqa: D102
        return self.quorum(MANY_WORKERS) < QUORUM

    def awaited(self, workers: int) -> int:  # noqa: D102
        quorum = self.quorum(workers)
        if quorum >= QUORUM:
            return quorum
        return 0 if self.lead is None else workers

    @property
    def steps_between_waits(self) -> int:
        """A lead of s averages delays over s + 1 steps before anybody waits for the slowest."""
        return 1 if self.quorum(MANY_WORKERS) >= QUORUM else 1 + (self.lead or 0)

    @property
    def deviation(self) -> float:  # noqa: D102
        return 1.0 + (UNBOUNDED_LEAD if self.lead is None else self.lead or LATE_ANSWER)

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return 1

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses architectures without a server: nobody there could let one worker go on without another."""
        if plan.architecture.has_server:
            return super().refusal(plan)
        return Refusal(
            reason=f"{self} cannot work over {plan.architecture}: whether a worker may go on is for a server to say.",
            nearest=(text_with(plan, architecture="ps"), text_with(plan, sync="bsp")),
        )


def require(holds: bool, sentence: str) -> None:
    """Makes sure that a policy's argument can be one.

    Raises:
        PlanError: it cannot; with the sentence.
    """
    if not holds:
        raise PlanError(sentence)
