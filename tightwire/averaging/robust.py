"""Means that a few wrong workers cannot carry away: coordinate-wise median and trimmed mean."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.answers import Rate
from tightwire.architecture.allreduce.program import split
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport


@dataclass(frozen=True)
class _Robust(AveragingMethod, abc.ABC):
    """Sends every element to the owner of its part, who sorts workers' values, and back what the middle says.

    What is left over, x less the outcome, is what a worker was overruled in, and is not to be fed back. Where gradients
    are skewed, as those of rare classes are, the middle is shorter than the mean: the learning rate is one's own to
    find, and `auto` does not choose it for you. A worker that skips a step, or whose data is over, brings zeros, which
    count as values like any others: give all workers equally much data.
    """

    keeps_optimizer: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    no_feedback: ClassVar[str] = "what a worker is overruled in is not to be sent again"

    @abc.abstractmethod
    def dropped(self, workers: int) -> int:
        """Returns how many of the largest values, and of the smallest, do not count."""

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of all parts but the own, and of the own outcome n − 1 times; see `AveragingMethod`."""
        sizes = split(sum(map(math.prod, shapes)), workers)
        return itemsize * (sum(sizes) + (workers - 2) * sizes[rank])

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._robust import RobustAverager

        shapes = [slot.shape for slot in bucket.slots]
        num_bytes = self.bytes_sent(shapes, bucket.dtype.itemsize, transport.size, transport.rank)
        dropped = self.dropped(transport.size)
        return RobustAverager(transport, bucket, dropped=dropped, num_bytes=num_bytes, tag=tag)


@final
@dataclass(frozen=True)
class Median(_Robust):
    """The median of every element over workers, of an even number of them the mean of the middle two.

    Under fewer than half of wrong workers it stays among the values of the others (definition 1; the paper proves the
    order-optimal rate of strongly convex losses, up to logarithms). Of unlike data it is not the mean.
    """

    name: ClassVar[str] = "median"
    title: ClassVar[str] = "coordinate-wise median"
    paper: ClassVar[str] = "Yin, Chen, Ramchandran and Bartlett 2018, arXiv:1803.01498, definition 1"
    promise: ClassVar[str] = "Converges at the optimal rate though some workers lie (Yin et al. 2018)."
    seen: ClassVar[str] = "Held by a test; no study has workers that lie."
    proven: ClassVar[Rate | None] = Rate(
        bound="Õ(α/√m + 1/√(nm) + 1/m) distance to the optimum: m samples each, a share α of workers wrong",
        assumes="smooth strongly convex loss, gradients of bounded variance and skewness, like data",
        speed_up="√n where none is wrong and m > n",
        paper="Yin et al. 2018, arXiv:1803.01498, theorem 1",
    )

    def dropped(self, workers: int) -> int:  # noqa: D102
        return (workers - 1) // 2


@final
@dataclass(frozen=True)
class TrimmedMean(_Robust):
    """The mean of every element without the share of largest and of smallest values (definition 2).

    Attributes:
        share: that is dropped on each side, of the workers, rounded down; in [0, 0.5).
    """

    name: ClassVar[str] = "trimmed"
    title: ClassVar[str] = "coordinate-wise trimmed mean"
    paper: ClassVar[str] = "Yin, Chen, Ramchandran and Bartlett 2018, arXiv:1803.01498, definition 2"
    promise: ClassVar[str] = "Converges at the optimal rate though some workers lie (Yin et al. 2018)."
    seen: ClassVar[str] = "Held by a test; no study has workers that lie."
    proven: ClassVar[Rate | None] = Rate(
        bound="Õ(α/√m + 1/√(nm)) distance to the optimum: m samples each, a share α of workers wrong",
        assumes="smooth strongly convex loss, sub-exponential gradients, like data",
        speed_up="√n where none is wrong",
        paper="Yin et al. 2018, arXiv:1803.01498, theorem 4",
    )
    example: ClassVar[str] = "trimmed:0.25"

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise PlanError(
                f"trimmed:{self.share} leaves nothing: give a share in [0, 0.5), as in trimmed:0.25."
            )

    def dropped(self, workers: int) -> int:  # noqa: D102
        return math.floor(self.share * workers + 1e-9)
