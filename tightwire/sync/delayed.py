"""Delayed gradients: step with the mean of an earlier step while this one's travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.answers import Rate
from tightwire.errors import PlanError
from tightwire.sync.bsp import Bsp
from tightwire.sync.sync import EngineKind, PredictorKind, Sync


@dataclass(frozen=True)
class Delayed(Sync):
    """Step t is made with the mean gradient of step t − steps, so exchanges travel during whole steps.

    Replicas stay bit-identical. Until the optimizer steps, `p.grad` is this worker's own; so is what is clipped. The
    first steps have no mean yet and change nothing; the means still under way at the end are applied then, with the
    rate of that time, so that none is lost.

    OD-SGD (algorithm 1) has each worker step with its own gradient as well, and computes the next one there, until the
    mean arrives and takes the place of that step. Here nobody steps alone, as in Pipe-SGD, so that replicas are equal
    at any time. Both from memory of the papers.

    The overlapped forms of local and DiLoCo are `local:H,overlap=H` and `diloco:H,overlap=H`.

    Args:
        steps: how late a mean is; 0 is bsp.
    """

    name: ClassVar[str] = "delayed"
    title: ClassVar[str] = "step with the mean of the step before, while this one's travels"
    paper: ClassVar[str] = "Li et al., Pipe-SGD, arXiv:1811.03619; OD-SGD, arXiv:2005.06728"
    promise: ClassVar[str] = "Hides the exchange at the loss of bsp with a delay of one (Li et al. 2018)."
    seen: ClassVar[str] = (
        "Not seen here without momentum: what it loses is the momentum that a delay of one does not bear at"
        " this rate."
    )
    proven: ClassVar[Rate | None] = Rate(
        bound="O(σ/√T + delay/T)",
        assumes="smooth non-convex loss, bounded variance",
        speed_up="linear in the first term, whose σ² falls by n",
        paper="Stich & Karimireddy 2020, arXiv:1909.05350, theorem 16",
    )
    example: ClassVar[str] = "delayed:1"
    engine: ClassVar[EngineKind] = "delayed"
    predictor: ClassVar[PredictorKind] = "delayed"

    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise PlanError(
                f"delayed:{self.steps} would use gradients before they exist; 0 is bsp, 1 the step before."
            )

    @property
    def deviation(self) -> float:  # noqa: D102
        return 1.0 + self.steps

    def stretches(self) -> tuple[tuple[Sync, int | None], ...]:
        """Without a delay it is bsp."""
        return ((self if self.steps else Bsp(), None),)

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return 1
