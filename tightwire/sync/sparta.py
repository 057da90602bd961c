"""SPARTA: every step averages a few parameters, drawn at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from tightwire.answers import Answers, Refusal
from tightwire.errors import PlanError
from tightwire.sync.lag import refuse_architecture, refuse_compression
from tightwire.sync.sync import EngineKind, PredictorKind, Sync


@dataclass(frozen=True)
class Sparta(Sync):
    """After every step of its own optimizer a worker averages a random share of its parameters with all others.

    All draw the same places from a shared seed, so that no indices travel: of every stretch of 1/ratio elements one.
    The others stay each worker's own, so that replicas differ at any time, and agree at the end, on the mean of all.
    With ratio 1 it is local:1. Its authors' code (EXO Gym) draws each place by a coin, 0.5 % by default. They report
    the loss of dense training at a thousandth of the bytes, with higher rates than one worker bears alone.

    Args:
        ratio: share of the parameters that a step averages, in (0, 1].
    """

    name: ClassVar[str] = "sparta"
    title: ClassVar[str] = "every step averages a random share of the parameters"
    paper: ClassVar[str] = "EXO Labs 2025, SPARTA, openreview.net/forum?id=stFPf3gzq1; EXO Gym (code)"
    promise: ClassVar[str] = (
        "Replicas stay together by as little as 0.1 % of the parameters a step (EXO Labs 2025)."
    )
    seen: ClassVar[str] = "More steps are needed: what is shared comes seldom in 800."
    example: ClassVar[str] = "sparta:0.005"
    engine: ClassVar[EngineKind] = "shares"
    predictor: ClassVar[PredictorKind] = "rounds"

    ratio: float = 0.005

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise PlanError(f"{self}: ratio is a share of the parameters, above 0 and at most 1.")

    @property
    def deviation(self) -> float:
        """How many steps pass, in the mean, between two agreements on an element."""
        return 1 / self.ratio

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return 1

    @property
    def share_sent(self) -> float:  # noqa: D102
        return self.ratio

    def kept(self, numel: int) -> int:
        """Returns how many of so many elements a step averages."""
        return max(1, math.ceil(self.ratio * numel)) if numel else 0

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses compression: the values of parameters travel, not changes."""
        return super().refusal(plan) or refuse_compression(plan) or refuse_architecture(plan)
