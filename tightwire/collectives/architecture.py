"""The architecture contract, and all-reduce: a plan's answer to "who talks to whom"."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

from tightwire.collectives.builders import PROGRAMS, build
from tightwire.collectives.program import Program
from tightwire.compression.codec import Codec
from tightwire.errors import PlanError
from tightwire.plan import Axis, Member, Plan, Refusal, text_with

GATHERING = ("allgather",)


@dataclass(frozen=True)
class Architecture(Member, abc.ABC):
    """An answer to "who talks to whom": how a mean, or what stands for it, comes about.

    Class attributes:
        has_server: whether somebody is there to tell workers when to go on.
    """

    axis: ClassVar[Axis] = "architecture"
    has_server: ClassVar[bool] = False

    @property
    def asynchronous(self) -> bool:
        """Whether workers may go on without waiting for others."""
        return False

    @abc.abstractmethod
    def program(self, codec: Codec, num_ranks: int) -> Program:
        """Returns the program by which `num_ranks` workers average messages of `codec`, where all wait for all.

        Raises:
            PlanError: a number of ranks for which there is none, with the legal ones.
        """


@dataclass(frozen=True)
class AllReduce(Architecture):
    """Everybody averages with everybody.

    Attributes:
        by: how; the name of one of `PROGRAMS`, or `auto`: the backend's own for what it can sum, ring for codecs
            whose messages combine, all-gather for the others.
    """

    name: ClassVar[str] = "allreduce"
    title: ClassVar[str] = "All-reduce by a program"
    paper: ClassVar[str] = "Thakur, Rabenseifner and Gropp 2005; Patarasuk and Yuan 2009"

    by: str = "auto"

    def __post_init__(self) -> None:
        if self.by != "auto" and self.by not in PROGRAMS:
            known = ", ".join(("auto", *sorted(PROGRAMS)))
            raise PlanError(f"allreduce:{self.by} is no known program; known: {known}.")

    def program_name(self, codec: Codec) -> str:
        """Returns the program that carries `codec`: the one asked for, or what `auto` stands for."""
        if self.by != "auto":
            return self.by
        if codec.combine == "none":
            return "allgather"
        return "native" if codec.lossless and codec.sums_as == "" else "ring"

    def program(self, codec: Codec, num_ranks: int) -> Program:  # noqa: D102
        return build(self.program_name(codec), num_ranks)

    def refusal(self, plan: Plan) -> Refusal | None:
        """Refuses a program that cannot carry the codec's messages."""
        codec = plan.compression[0]
        if self.by == "auto" or self.by in GATHERING or not isinstance(codec, Codec):
            return None
        if codec.combine == "none":
            return _refuse(plan, f"{codec} cannot travel by {self.by}: its messages have no elementwise sum.")
        if self.by == "native" and codec.sums_as is None:
            return _refuse(
                plan, f"{codec} cannot travel by native: no backend sums its messages.", "allreduce:ring"
            )
        return None


def _refuse(plan: Plan, reason: str, nearest: str = "allreduce:allgather") -> Refusal:
    return Refusal(reason=reason, nearest=(text_with(plan, architecture=nearest),))
