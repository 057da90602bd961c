"""Delayed gradients: step with the mean of an earlier step while this one's travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.errors import PlanError
from tightwire.sync.sync import Quantity, Sync


@dataclass(frozen=True)
class Delayed(Sync):
    """Step t is made with the mean gradient of step t − steps, so exchanges travel during whole steps.

    Replicas stay bit-identical. Until the optimizer steps, `p.grad` is this worker's own; so is what is clipped. The
    first steps have no mean yet and change nothing; the means still under way at the end are applied then, with the
    rate of that time, so that none is lost.

    The overlapped forms of local and DiLoCo are `local:H,overlap=H` and `diloco:H,overlap=H`.

    Args:
        steps: how late a mean is; 0 is bsp.
    """

    name: ClassVar[str] = "delayed"
    title: ClassVar[str] = "step with the mean of the step before, while this one's travels"
    paper: ClassVar[str] = "Li et al., Pipe-SGD, arXiv:1811.03619; OD-SGD, arXiv:2005.06728"
    example: ClassVar[str] = "delayed:1"
    exchanges: ClassVar[frozenset[Quantity]] = frozenset({"gradients"})

    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise PlanError(
                f"delayed:{self.steps} would use gradients before they exist; 0 is bsp, 1 the step before."
            )

    def averages_gradients(self, step: int) -> bool:  # noqa: D102
        return True

    def averages_parameters(self, step: int) -> bool:  # noqa: D102
        return False

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return 1
