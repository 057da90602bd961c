"""Backup workers: a round goes on with the first gradients, and drops the last ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.answers import Rate
from tightwire.errors import PlanError
from tightwire.sync.served import LATE_ANSWER, Served, require


@final
@dataclass(frozen=True)
class Backup(Served):
    """An update is made from the mean of a round's first n − b gradients; later ones are dropped and counted.

    A worker that was late goes on with the present parameters, in the present round. When fewer than n − b workers
    have data left, a round is all of those. Several shards close a round at different moments, and with different
    workers' gradients, as the paper's variables do; a gradient counts in none of them if any parameter that it was
    computed with is of an older round. (Else it is a step made with late gradients, which momentum does not bear.)

    Args:
        b: how many gradients a round does without; 0 is bsp.
    """

    name: ClassVar[str] = "backup"
    title: ClassVar[str] = "bsp with backup workers: go on with the first n − b gradients"
    paper: ClassVar[str] = "Chen et al. 2016, Revisiting distributed synchronous SGD, arXiv:1604.00981"
    promise: ClassVar[str] = (
        "One or a few backup workers of 100 end the wait for stragglers at the loss of bsp (Chen et al. "
        "2016)."
    )
    seen: ClassVar[str] = (
        "The loss is seen, and part of the time: where one of four is late in every step, the one that was "
        "late begins out of step with the others, and is soon late again; simulated, three of four then "
        "make half as many steps more than bsp, not twice as many."
    )
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√((n − b)T))",
        assumes="smooth non-convex loss, bounded variance; who is late does not depend on the data",
        speed_up="linear: n − b",
        paper="as bsp: Ghadimi & Lan 2013, arXiv:1309.5549",
    )
    example: ClassVar[str] = "backup:1"

    b: int

    def __post_init__(self) -> None:
        require(self.b >= 0, f"backup:{self.b} has fewer backup workers than none; 0 is bsp.")

    @property
    def deviation(self) -> float:  # noqa: D102
        return 1.0 + LATE_ANSWER

    def fitted(self, workers: int) -> Backup:
        """Returns the same, with at least one gradient in each round."""
        return Backup(min(self.b, workers - 1))

    def quorum(self, workers: int) -> int:  # noqa: D102
        if self.b >= workers:
            raise PlanError(
                f"backup:{self.b} does without {self.b} of {workers} workers' gradients, and none is left: give at "
                f"most backup:{workers - 1}."
            )
        return workers - self.b
