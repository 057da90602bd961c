"""All-reduce as a plan's answer to "who talks to whom"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.collectives.builders import PROGRAMS
from tightwire.compression.codec import Codec
from tightwire.errors import PlanError
from tightwire.plan import Axis, Member, Plan, Refusal, text_with

GATHERING = ("allgather",)


@dataclass(frozen=True)
class AllReduce(Member):
    """Everybody averages with everybody.

    Attributes:
        program: how; one of `PROGRAMS`, or `auto`: the backend's own for what it can sum, ring for codecs
            whose messages combine, all-gather for the others.
    """

    name: ClassVar[str] = "allreduce"
    axis: ClassVar[Axis] = "architecture"
    title: ClassVar[str] = "All-reduce by a program"
    paper: ClassVar[str] = "Thakur, Rabenseifner and Gropp 2005; Patarasuk and Yuan 2009"

    program: str = "auto"

    def __post_init__(self) -> None:
        if self.program != "auto" and self.program not in PROGRAMS:
            known = ", ".join(("auto", *sorted(PROGRAMS)))
            raise PlanError(f"allreduce:{self.program} is no known program; known: {known}.")

    def program_name(self, codec: Codec) -> str:
        """Returns the program that carries `codec`: the one asked for, or what `auto` stands for."""
        if self.program != "auto":
            return self.program
        if codec.combine == "none":
            return "allgather"
        return "native" if codec.lossless and codec.sums_as == "" else "ring"

    def refusal(self, plan: Plan) -> Refusal | None:
        """Refuses a program that cannot carry the codec's messages."""
        codec = plan.compression[0]
        if self.program == "auto" or self.program in GATHERING or not isinstance(codec, Codec):
            return None
        if codec.combine == "none":
            return _refuse(
                plan, f"{codec} cannot travel by {self.program}: its messages have no elementwise sum."
            )
        if self.program == "native" and codec.sums_as is None:
            return _refuse(
                plan, f"{codec} cannot travel by native: no backend sums its messages.", "allreduce:ring"
            )
        return None


def _refuse(plan: Plan, reason: str, nearest: str = "allreduce:allgather") -> Refusal:
    return Refusal(reason=reason, nearest=(text_with(plan, architecture=nearest),))
