"""The sync contract: what is exchanged when, and what a policy needs of those who carry it out or price it."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from tightwire.answers import Answers, Refusal, SyncAnswer, text_with

# What carries a policy out at run time over an all-reduce or behind servers; see `tightwire.runtime.engines`.
EngineKind = Literal["gradients", "delayed", "halves", "lazy", "significance", "shares", "rounds", "server"]
# How a policy's steps are predicted; see `tightwire.simulate`.
PredictorKind = Literal["bulk", "delayed", "rounds", "server"]


@dataclass(frozen=True)
class Sync(SyncAnswer, abc.ABC):
    """An answer to "when do replicas agree". Steps are optimizer steps, counted from 1.

    Class attributes:
        engine: what carries the policy out. Every member declares it, or takes it from a family.
        predictor: how its steps are predicted; likewise.
        needs_agreement: whether every worker must hold the same mean after a round, as it does under all-reduce and
            behind a server but not under gossip.
        is_bulk: whether every step is made with the mean of that step's own gradients over all workers.
        follows_loss: whether the policy listens to `run.report_loss`.
        keeps_optimizer: whether the user's optimizer may stay as it is; else it is chosen by name alone.

    Raises:
        TypeError: a member, when its class is made, that does not say what carries it out or how it is predicted.
    """

    engine: ClassVar[EngineKind]
    predictor: ClassVar[PredictorKind]
    needs_agreement: ClassVar[bool] = True
    is_bulk: ClassVar[bool] = False
    follows_loss: ClassVar[bool] = False
    keeps_optimizer: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            return  # a family, whose members speak for themselves
        for what, kinds in (("engine", EngineKind), ("predictor", PredictorKind)):
            declared = {
                name: value for kind in reversed(cls.__mro__) for name, value in vars(kind).items()
            }.get(what)
            if declared not in get_args(kinds):
                raise TypeError(
                    f"the policy {cls.name} does not declare its {what}; set the class attribute {what} to one of "
                    f"{', '.join(get_args(kinds))}."
                )
        if cls.deviation is Sync.deviation:
            raise TypeError(
                f"the policy {cls.name} does not declare its deviation: define the property, which says how many steps "
                "share an agreement or are made before it is known."
            )

    @property
    @abc.abstractmethod
    def steps_per_round(self) -> int:
        """How many steps share one exchange."""

    @property
    @abc.abstractmethod
    def deviation(self) -> float:
        """How much the policy changes training: how many steps share an agreement, or are behind it.

        1: nothing. An order among policies, not a loss of accuracy.
        """

    @property
    def share_sent(self) -> float:
        """What share of the model an exchange carries, in the mean."""
        return 1.0

    @property
    def states_sent(self) -> float:
        """How many tensors of the optimizer's state travel with each parameter in a round, in the mean."""
        return 0.0

    @property
    def roll_numbers(self) -> int:
        """How many numbers of its own the message has that begins a round of parameters."""
        return 2

    @property
    def steps_late(self) -> int:
        """How many steps are made while an exchange travels; 0: all wait for it."""
        return 0

    @property
    def steps_inside(self) -> int:
        """How many steps share an exchange within the node; 0: there is none."""
        return 0

    @property
    def workers_inside(self) -> int:
        """How many consecutive ranks are a node, for exchanges within it; 0: as many as the launcher says."""
        return 0

    @property
    def updates_alone(self) -> bool:
        """Whether a server updates the model once for every worker's gradient, rather than once for their mean."""
        return False

    def awaited(self, workers: int) -> int:
        """Returns which of N workers, in the order of their arrival, a worker waits for: N is the slowest, 0 nobody."""
        return workers

    @property
    def grace_s(self) -> float:
        """For how many seconds the others are waited for too, once those awaited are there."""
        return 0.0

    @property
    def steps_between_waits(self) -> int:
        """How many steps a worker makes, in the mean, between two waits for others; delays average out over them."""
        return self.steps_per_round

    @property
    def has_outer_step(self) -> bool:
        """Whether a step with a momentum of its own follows the mean."""
        return False

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
