"""Gaia: only what is significant is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.answers import Answers, Rate, Refusal, text_with
from tightwire.errors import PlanError
from tightwire.sync.lag import LEFT_OUT, refuse_architecture, refuse_compression
from tightwire.sync.sync import EngineKind, PredictorKind, Sync


@dataclass(frozen=True)
class Gaia(Sync):
    """A worker keeps its updates u to itself until they are significant: |u/x| > s/√t.

    After every step of its own optimizer a worker sends the elements whose accumulated update passes the threshold, as
    pairs of index and value; x is what all agree on, t the step. Updates count 1/n each, as gradients do in a mean, so
    that s = 0 is local:1. What a round sends is told in a vote before it. At the end all updates count as significant.

    The paper's filter sits between data centres; here every worker is one. The rule is from memory of the paper.

    Args:
        s: the threshold of the first step, 0.01 in the paper.
    """

    name: ClassVar[str] = "gaia"
    title: ClassVar[str] = "send only updates that are significant relative to the value"
    paper: ClassVar[str] = "Hsieh et al., Gaia: Geo-Distributed Machine Learning, NSDI 2017"
    promise: ClassVar[str] = (
        "The accuracy of bsp, and 1.8 to 53 times its speed between sites (Hsieh et al. 2017)."
    )
    seen: ClassVar[str] = "The first is seen, at half of the bytes."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(√T) regret",
        assumes="convex Lipschitz loss, bounded distances",
        speed_up="not stated",
        paper="Hsieh et al. 2017, NSDI, theorem 1",
    )
    example: ClassVar[str] = "gaia:0.01"
    engine: ClassVar[EngineKind] = "significance"
    predictor: ClassVar[PredictorKind] = "rounds"

    s: float = 0.01

    def __post_init__(self) -> None:
        if not self.s >= 0:
            raise PlanError(f"{self}: a threshold is at least 0, where every update is sent.")

    @property
    def deviation(self) -> float:  # noqa: D102
        return LEFT_OUT

    @property
    def steps_per_round(self) -> int:
        """A round per step, of what is significant."""
        return 1

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses compression, for the filter is one, and a program, for it sends straight to all."""
        if refusal := super().refusal(plan) or refuse_compression(plan) or refuse_architecture(plan):
            return refusal
        if str(plan.architecture) == "allreduce":
            return None
        return Refusal(
            reason=f"{self} cannot travel by {plan.architecture}: it brings an exchange of its own.",
            nearest=(text_with(plan, architecture="allreduce"),),
        )
