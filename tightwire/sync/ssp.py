"""Stale synchronous parallel: nobody runs further ahead of the slowest than a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.answers import Rate
from tightwire.sync.served import Served, require


@final
@dataclass(frozen=True)
class Ssp(Served):
    """A worker goes on while its clock − the slowest worker's ≤ s, and always reads its own writes.

    With s ≥ 1 each gradient makes an update when it comes, at 1/n of the rate, so that n workers' steps weigh as one
    of bsp. With s = 0 nobody may see a part of a round, so that a round's gradients make one update, from their mean:
    that is bsp, for any optimizer.

    Args:
        s: clocks; 0 is bsp.
    """

    name: ClassVar[str] = "ssp"
    title: ClassVar[str] = "run ahead of the slowest worker, up to a bound"
    paper: ClassVar[str] = (
        "Ho et al. 2013, More effective distributed ML via a stale synchronous parallel server"
    )
    promise: ClassVar[str] = "Faster than bsp to the same loss, with a bound that asp lacks (Ho et al. 2013)."
    seen: ClassVar[str] = (
        "More steps a second are seen beside a straggler; in loss a step is worth less, for older gradients"
        " bear no momentum."
    )
    proven: ClassVar[Rate | None] = Rate(
        bound="O(√((s + 1)n/T)) mean regret of T updates",
        assumes="convex Lipschitz loss, bounded distances",
        speed_up="within the bound, n updates per step pay for the factor √n",
        paper="Ho et al. 2013, theorem 1",
    )
    example: ClassVar[str] = "ssp:3"

    s: int

    def __post_init__(self) -> None:
        require(
            self.s >= 0, f"ssp:{self.s} has a negative bound; 0 is bsp, 3 lets workers run 3 steps ahead."
        )

    def quorum(self, workers: int) -> int:  # noqa: D102
        return workers if self.s == 0 else 0

    @property
    def lead(self) -> int | None:  # noqa: D102
        return self.s
