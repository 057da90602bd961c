"""What averaging methods share that begin with each worker's largest elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tightwire.averaging.method import AveragingMethod
from tightwire.compression import TopK
from tightwire.errors import PlanError

if TYPE_CHECKING:
    pass

INDEX_BYTES = 4


@dataclass(frozen=True)
class TopKMethod(AveragingMethod):
    """Begins with each worker's k = max(1, ⌈ratio·N⌉) largest magnitudes of the bucket's N elements.

    Attributes:
        ratio: of the elements that a worker selects, in (0, 1].
    """

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise PlanError(
                f"{self.name} cannot keep a share of {self.ratio}: give one in (0, 1], as in {self.name}:0.01."
            )

    def kept(self, numel: int) -> int:
        """Returns k."""
        return TopK(self.ratio).kept(numel)
