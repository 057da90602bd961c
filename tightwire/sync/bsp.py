"""Bulk synchronous parallel: agree on the mean gradient at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.answers import Rate
from tightwire.sync.sync import EngineKind, PredictorKind, Sync


@dataclass(frozen=True)
class Bsp(Sync):
    """Every step is made with the mean gradient; replicas stay bit-identical."""

    name: ClassVar[str] = "bsp"
    title: ClassVar[str] = "agree on the mean gradient every step"
    paper: ClassVar[str] = "Valiant, A Bridging Model for Parallel Computation, CACM 1990"
    promise: ClassVar[str] = "The reference: n workers make the step of a batch n times as large."
    seen: ClassVar[str] = "Every study holds its methods to it."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT))",
        assumes="smooth non-convex loss, bounded variance",
        speed_up="linear: n",
        paper="Ghadimi & Lan 2013, arXiv:1309.5549, corollary 2.2",
    )
    engine: ClassVar[EngineKind] = "gradients"
    predictor: ClassVar[PredictorKind] = "bulk"
    is_bulk: ClassVar[bool] = True
    needs_agreement: ClassVar[bool] = False

    @property
    def deviation(self) -> float:  # noqa: D102
        return 1.0

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return 1
