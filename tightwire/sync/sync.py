"""The sync contract: what is exchanged at which step."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal

from tightwire.answers import Answers, Refusal, SyncAnswer, text_with

Quantity = Literal["gradients", "parameters", "updates"]


@dataclass(frozen=True)
class Sync(SyncAnswer, abc.ABC):
    """An answer to "when do replicas agree". Steps are optimizer steps, counted from 1.

    Class attributes:
        exchanges: what workers ever agree on under this policy.
        needs_agreement: whether every worker must hold the same mean after a round, as it does under all-reduce and
            behind a server but not under gossip.
        follows_loss: whether the policy listens to `run.report_loss`.
    """

    exchanges: ClassVar[frozenset[Quantity]]
    needs_agreement: ClassVar[bool] = True
    follows_loss: ClassVar[bool] = False

    @abc.abstractmethod
    def averages_gradients(self, step: int) -> bool:
        """Whether `step` is made with the mean gradient of all workers."""

    @abc.abstractmethod
    def averages_parameters(self, step: int) -> bool:
        """Whether workers agree on the mean of their parameters after `step`."""

    @property
    @abc.abstractmethod
    def steps_per_round(self) -> int:
        """How many steps share one exchange."""

    def stretches(self) -> tuple[tuple[Sync, int | None], ...]:
        """Returns what this policy is in turn: each policy with its last step, None for the last one."""
        return ((self, None),)

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses an architecture under which workers do not come to hold the same mean."""
        if self.needs_agreement and not plan.architecture.agrees:
            return Refusal(
                reason=f"{self} cannot work over {plan.architecture}: its rounds begin where all workers hold the same "
                "model, and here none do.",
                nearest=(text_with(plan, architecture="allreduce"),),
            )
        return None
