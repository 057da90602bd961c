"""SparCML: the exact sum of all workers' largest elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.averaging.sparse_doubling import SparseDoubling


@final
@dataclass(frozen=True)
class SparCML(SparseDoubling):
    """Adds all workers' k largest elements exactly: sparse sums that grow, and turn dense when that is smaller.

    SSAR_Recursive_double of section 5.3.1 with the switch of section 5.1 made on the most elements that a sum can
    have, so that sizes are known before anything is sent; unused places travel as zeros. From memory of the paper.

    Attributes:
        ratio: of the elements that a worker selects, in (0, 1].
    """

    name: ClassVar[str] = "sparcml"
    title: ClassVar[str] = "exact sum of everybody's top-k"
    paper: ClassVar[str] = "Renggli et al. 2019, arXiv:1802.08021"
    promise: ClassVar[str] = "The exact sum of everybody's top-k (Renggli et al. 2019)."
    seen: ClassVar[str] = "Seen: as top-k by all-gather."
    example: ClassVar[str] = "sparcml:0.01+ef"

    def _entries(self, kept: int, contributions: int) -> int:
        return kept * contributions
