"""LAG: a worker sends its gradient only when it has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.answers import Answers, Rate, Refusal, text_with
from tightwire.errors import PlanError
from tightwire.sync.sync import EngineKind, PredictorKind, Sync

# D of the paper's experiments.
LOOKS_BACK = 10
# How much it changes training to leave out what is small.
LEFT_OUT = 2.0


@dataclass(frozen=True)
class Lag(Sync):
    """A worker skips its upload while ‖g − g_sent‖² ≤ threshold · Σ_d ‖mean_{k−d}‖² over the last 10 steps (LAG-WK).

    That is (15a) of Chen et al. with ξ_d = threshold, θ^{k+1−d} − θ^{k−d} = −α · sum of gradients: that of gradient
    descent, for which the method is made; the noise of small batches makes workers send nearly always. All then step
    with the mean of what each sent last. A step begins with one vote about who sends; the bytes of a step follow from
    it: none if nobody does, the plan's own exchange if all do, and else a tree from the senders to one of them and from
    there to all. Rule and defaults are those of the authors' code (github.com/chentianyi1991/LAG-code); there nobody
    sends in the first ten steps, and here all do until there are means to compare with.

    Args:
        threshold: the paper's ξ, 0.1 there; 0 skips only what has not changed at all, which is bsp.
    """

    name: ClassVar[str] = "lag"
    title: ClassVar[str] = "a worker sends its gradient only when it has changed"
    paper: ClassVar[str] = "Chen et al., LAG: Lazily Aggregated Gradient, arXiv:1805.09965"
    promise: ClassVar[str] = (
        "The loss of gradient descent at a small share of the uploads, where workers' data differ (Chen et "
        "al. 2018)."
    )
    seen: ClassVar[str] = (
        "Not seen here: gradients of small batches change in every step, and hardly any is skipped."
    )
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/T); linear where strongly convex",
        assumes="smooth loss, whole gradients (no noise)",
        speed_up="not stated: it saves uploads",
        paper="Chen et al. 2018, arXiv:1805.09965, theorems 1 to 3",
    )
    example: ClassVar[str] = "lag:0.1"
    engine: ClassVar[EngineKind] = "lazy"
    predictor: ClassVar[PredictorKind] = "bulk"

    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise PlanError(f"{self}: a threshold is at least 0, where every change is sent.")

    @property
    def deviation(self) -> float:  # noqa: D102
        return LEFT_OUT

    @property
    def steps_per_round(self) -> int:
        """One vote per step."""
        return 1

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses compression, for what a worker skips is measured against what it sent, and what is no all-reduce."""
        return super().refusal(plan) or refuse_compression(plan) or refuse_architecture(plan)


def refuse_compression(plan: Answers) -> Refusal | None:
    """Refuses anything but the tensors themselves, for policies that choose on their own what to send."""
    if plan.compression_text == "none":
        return None
    return Refusal(
        reason=f"{plan.sync} chooses on its own what to send, and compares it with what others have of it: "
        f"{plan.compression_text} would send something else.",
        nearest=(text_with(plan, compression="none"), text_with(plan, sync="bsp")),
    )


def refuse_architecture(plan: Answers) -> Refusal | None:
    """Refuses anything but an all-reduce, for policies whose exchange depends on who sends."""
    if plan.architecture.name == "allreduce":
        return None
    return Refusal(
        reason=f"{plan.sync} cannot work over {plan.architecture}: who sends changes from step to step, and with it "
        "the way that messages take.",
        nearest=(text_with(plan, architecture="allreduce"),),
    )
