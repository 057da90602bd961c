"""Stages that remember, for the next round, what a message did not carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.compression.codec import Codec, Stage
from tightwire.plan import Plan, Refusal, text_with


@final
@dataclass(frozen=True)
class ErrorFeedback(Stage):
    """Adds the leftover of each round to the next: e ← p − C(p) with p = g + e.

    The reducer leaves the leftover in the bucket, so this stage only says that it is kept, not dropped.
    """

    name: ClassVar[str] = "ef"
    title: ClassVar[str] = "error feedback"
    paper: ClassVar[str] = "Seide et al. 2014, Interspeech; Karimireddy et al. 2019, arXiv:1901.09847"
    example: ClassVar[str] = "topk:0.01+ef"

    def refusal(self, plan: Plan) -> Refusal | None:
        """Refuses a codec that leaves nothing over."""
        if refusal := super().refusal(plan):
            return refusal
        codec = plan.compression[0]
        if isinstance(codec, Codec) and codec.lossless:
            return Refusal(
                reason=f"{codec}+ef has nothing to feed back: {codec} is lossless, nothing is left over.",
                nearest=(text_with(plan, compression=str(codec)),),
            )
        return None
