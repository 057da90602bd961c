"""Asynchronous parallel: nobody waits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

from tightwire.answers import Answers, Rate, Refusal
from tightwire.sync.served import Served, require

RATES = ("mean", "staleness", "full")


@final
@dataclass(frozen=True)
class Asp(Served):
    """Each gradient makes an update when it comes, and its worker gets the newest parameters.

    Delay compensation replaces a gradient by g + λ g⊙g⊙(x_now − x_read), what it would have been at x_now to first
    order with g⊙g for the Hessian (DC-ASGD, equation 10, with the constant λ, not the adaptive one; MXNet has it as
    `dcasgd`, where g holds weight decay, too).

    Args:
        rate_by: `mean` multiplies the worker's learning rate by 1/n, so that n workers' steps weigh as one of bsp,
            `staleness` by 1/τ for a gradient that is τ ≥ 1 updates old (Zhang et al. 2016, arXiv:1511.05950), `full`
            leaves it as it is (Downpour).
        dc: λ; 0 leaves gradients as they are.
    """

    name: ClassVar[str] = "asp"
    title: ClassVar[str] = "nobody waits; options for stale gradients"
    paper: ClassVar[str] = "Dean et al. 2012, Downpour SGD; Zheng et al. 2017, DC-ASGD, arXiv:1609.08326"
    promise: ClassVar[str] = (
        "Many workers learn faster than one, with nobody waiting (Dean et al. 2012); with compensation no "
        "worse than in sequence (Zheng et al. 2017)."
    )
    seen: ClassVar[str] = "More steps a second are seen here; compensation changes little at these ages."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT)) for delays up to O(√(T/n))",
        assumes="smooth non-convex loss, bounded variance",
        speed_up="linear: n, while delays are not longer",
        paper="Lian et al. 2015, arXiv:1506.08272, corollary 2",
    )

    rate_by: str = field(default="mean", kw_only=True)
    dc: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        require(self.rate_by in RATES, f"asp:rate_by={self.rate_by} is none of {', '.join(RATES)}.")
        require(
            0 <= self.dc < math.inf,
            f"asp:dc={self.dc} cannot be: λ is at least 0; 0 leaves gradients as they are, the paper uses 0.04 to 2.",
        )

    def quorum(self, workers: int) -> int:  # noqa: D102
        return 0

    @property
    def compensation(self) -> float:  # noqa: D102
        return self.dc

    def rate(self, staleness: int, workers: int) -> float:  # noqa: D102
        return {"mean": 1 / workers, "staleness": 1 / max(staleness, 1), "full": 1.0}[self.rate_by]

    def refusal(self, plan: Answers) -> Refusal | None:
        """Leaves architectures that are asynchronous by themselves to their own judgement."""
        if plan.architecture.asynchronous:
            return None
        return super().refusal(plan)
