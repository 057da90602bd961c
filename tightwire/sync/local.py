"""Local SGD: several steps alone, then agree on the mean of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.errors import PlanError
from tightwire.sync.sync import Quantity, Sync


@dataclass(frozen=True)
class Local(Sync):
    """H local steps, then average the parameters.

    What travels is the pseudo-gradient x_start − x_end, so any codec serves; every worker then continues from
    x_start − mean (Stich, Algorithm 1, written as a difference). The optimizer's state stays each worker's own.

    Args:
        H: local steps per round; 1 is bsp, up to rounding, for an optimizer that is linear in the gradient.
    """

    name: ClassVar[str] = "local"
    title: ClassVar[str] = "H local steps, then average the parameters"
    paper: ClassVar[str] = (
        "Stich, Local SGD Converges Fast, arXiv:1805.09767; Yu et al., PR-SGD, arXiv:1807.06629"
    )
    example: ClassVar[str] = "local:8"
    exchanges: ClassVar[frozenset[Quantity]] = frozenset({"parameters"})

    H: int

    def __post_init__(self) -> None:
        if self.H < 1:
            raise PlanError(
                f"local:{self.H} would never agree; H is the number of local steps per round, at least 1."
            )

    def averages_gradients(self, step: int) -> bool:  # noqa: D102
        return False

    def averages_parameters(self, step: int) -> bool:  # noqa: D102
        return step % self.H == 0

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H
