"""Post-local SGD: bsp first, local SGD once the loss has come down."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.errors import PlanError
from tightwire.sync.bsp import Bsp
from tightwire.sync.local import Local
from tightwire.sync.rounds import require_state, require_steps
from tightwire.sync.sync import EngineKind, PredictorKind, Sync


@dataclass(frozen=True)
class PostLocal(Sync):
    """Bulk synchronous for `start` steps, then local:H; the phases bsp@start~local:H under one name.

    Args:
        H: local steps per round after the start.
        start: steps made in bulk; the paper switches at the first decay of the rate.
        state: of the optimizer in local rounds, as in `local`; the paper keeps each worker's own.
    """

    name: ClassVar[str] = "postlocal"
    title: ClassVar[str] = "bsp for a number of steps, then local SGD"
    paper: ClassVar[str] = "Lin et al., Don't Use Large Mini-Batches, Use Local SGD, arXiv:1808.07217"
    promise: ClassVar[str] = (
        "Generalises better than large batches at as many passes over the data (Lin et al. 2020)."
    )
    seen: ClassVar[str] = (
        "Here it is better than local from the start, and not better than bsp: batches are small."
    )
    example: ClassVar[str] = "postlocal:8,start=2"
    engine: ClassVar[EngineKind] = "rounds"  # in the long run; see `stretches`
    predictor: ClassVar[PredictorKind] = "rounds"

    H: int
    _: KW_ONLY
    start: int
    state: str = "kept"

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require_state(self, self.state)
        if self.start < 1:
            raise PlanError(f"postlocal:{self.H},start={self.start} never is bsp; write local:{self.H}.")

    @property
    def deviation(self) -> float:  # noqa: D102
        return float(self.H)

    @property
    def steps_per_round(self) -> int:
        """H: in the long run."""
        return self.H

    def stretches(self) -> tuple[tuple[Sync, int | None], ...]:  # noqa: D102
        return ((Bsp(), self.start), (Local(self.H, state=self.state), None))
