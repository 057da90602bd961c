"""What the stages that pick elements share: they stand where error feedback would."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tightwire.answers import Answers, Refusal
from tightwire.compression.momentum import Momentum
from tightwire.compression.stage import Stage, refuse

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class _Pick(Stage, abc.ABC):
    """Lets a sparse codec see zeros where an element is to wait; what it has no room for is kept too."""

    place: ClassVar[int] = 0

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a codec that sends zeros as readily as anything, and momentum's mask, which sees no picks."""
        if refusal := super().refusal(plan):
            return refusal
        sender, *stages = plan.compression
        if not hasattr(sender, "ratio"):
            others = "+".join(["topk:0.01", *map(str, stages)])
            return Refusal(
                reason=f"{sender} sends every element, so that {self} saves nothing: it needs a sparse codec.",
                nearest=(str(plan).replace(plan.compression_text, others),),
            )
        if any(isinstance(stage, Momentum) for stage in stages):
            without = [stage for stage in stages if not isinstance(stage, Momentum)]
            reason = (
                f"{plan.compression_text}: momentum masks what the codec sent, and {self} keeps more back."
            )
            return refuse(plan, reason, without)
        return None
