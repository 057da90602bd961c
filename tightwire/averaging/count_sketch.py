"""Count-sketch: sketches are summed, and the largest elements of the sum recovered from theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.exact import exact_bytes
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.compression import TopK
from tightwire.compression.checks import check_ratio
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport

LANES = 16
TABLE_ITEMSIZE = 4


@final
@dataclass(frozen=True)
class CountSketch(AveragingMethod):
    """Sums the workers' sketches by an all-reduce, and takes from the sum its k largest elements by estimate.

    A sketch is a table in which each element is added, by a random sign, at one random place per row; the median
    over rows of what is found there estimates it. Every worker draws the same hashes, so that tables add, and every
    worker finds the same k = max(1, ⌈ratio·n⌉) heavy hitters in their sum.

    With `exact` the exact values of those travel in a second all-reduce and leave the buckets (Sketched-SGD, one
    candidate per place); hashes follow from the round's seed. Without, the mean is the estimates (FetchSGD), and what
    is left over is the input less that mean, noise included: hashes are the same in all rounds, as the paper's are,
    since a sketch of the leftover is then the sketch that the paper keeps. Of the estimates that share is taken which
    leaves least in the table; the authors' code empties the places it reads instead, which no leftover outside a sketch
    could follow. Meant for `+ef`. Tables are float32. Dense where that is smaller.

    Time: a row costs each element an addition at a random line of the table, in groups of 16 neighbours; the floor is
    those rows · n/16 cache lines, read and written.

    Attributes:
        ratio: of the elements that are recovered, in (0, 1].
        width: places of a row, as a share of the elements; at least 16 places.
        rows: 1, 3 or 5.
        exact: whether values travel after places are found.
    """

    name: ClassVar[str] = "sketch"
    title: ClassVar[str] = "heavy hitters of a summed count-sketch"
    paper: ClassVar[str] = "Ivkin et al. 2019, arXiv:1903.04488; Rothchild et al. 2020, arXiv:2007.07682"
    promise: ClassVar[str] = "Heavy hitters of a sum, whatever the number of workers (Ivkin et al. 2019)."
    seen: ClassVar[str] = "More steps are needed: the model is small for its sketch."
    example: ClassVar[str] = "sketch:0.01+ef"

    ratio: float
    width: float = 0.02
    rows: int = 3
    exact: bool = True

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)
        if not 0 < self.width <= 1 or self.rows not in (1, 3, 5):
            raise PlanError(
                f"{self} cannot be laid out: give a width in (0, 1] and 1, 3 or 5 rows, as in sketch:0.01,width=0.02."
            )

    def kept(self, numel: int) -> int:
        """Returns k."""
        return TopK(self.ratio).kept(numel)

    def columns(self, numel: int) -> int | None:
        """Returns the places of a row, or None where the bucket travels dense."""
        columns = LANES * max(1, math.ceil(self.width * numel / LANES))
        sent = self.rows * columns + (self.kept(numel) if self.exact else 0)
        return columns if sent < numel else None

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of one or two all-reduces; see `AveragingMethod.bytes_sent`."""
        numel = sum(map(math.prod, shapes))
        columns = self.columns(numel)
        if columns is None:
            return exact_bytes(numel, itemsize, workers, rank)
        table = exact_bytes(self.rows * columns, TABLE_ITEMSIZE, workers, rank)
        return table + (exact_bytes(self.kept(numel), itemsize, workers, rank) if self.exact else 0)

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.architecture.allreduce.exact import exact_runner
        from tightwire.averaging._count_sketch import CountSketchAverager

        columns = self.columns(bucket.numel)
        if columns is None:
            return exact_runner(transport, bucket.numel, bucket.dtype, tag, bucket.device)
        shapes = [slot.shape for slot in bucket.slots]
        return CountSketchAverager(
            transport,
            bucket,
            table=(self.rows, columns),
            kept=self.kept(bucket.numel),
            exact=self.exact,
            num_bytes=self.bytes_sent(shapes, bucket.dtype.itemsize, transport.size, transport.rank),
            tag=tag,
        )
