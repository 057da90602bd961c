"""The recipe contract: a name for a codec and its stages, printed as those."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from tightwire.answers import Answers, CompressionAnswer, Refusal, text_with
from tightwire.catalogue import parse_compression


@dataclass(frozen=True)
class Recipe(CompressionAnswer, abc.ABC):
    """A name for an expression. A plan holds what the expression says, so the name is lost in its text.

    >>> from tightwire.plan import Plan
    >>> str(Plan.parse("bsp/allreduce/gradient-dropping"))
    'bsp/allreduce/topk:0.01+ef'
    """

    @property
    @abc.abstractmethod
    def expression(self) -> str:
        """What the name stands for."""

    def expand(self) -> tuple[CompressionAnswer, ...]:
        """Returns the codec and the stages."""
        return parse_compression(self.expression)

    def refusal(self, plan: Answers) -> Refusal:
        """Refuses to be part of a plan unexpanded; parsing expands."""
        return Refusal(
            reason=f"{self} is a name for {self.expression}: a plan holds the codec and its stages.",
            nearest=(text_with(plan, compression=self.expression),),
        )
