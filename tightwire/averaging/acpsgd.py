"""ACP-SGD: matrices as two thin factors, of which one is sent in each round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.exact import exact_bytes
from tightwire.averaging._matrices import FACTOR_ITEMSIZE, matrix
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport


@final
@dataclass(frozen=True)
class ACPSGD(AveragingMethod):
    """Averages matrices by half a step of PowerSGD's power iteration in each round: one all-reduce instead of two.

    Per matrix M, seen as (shape[0], rest): in one round P ← mean of M·Q and the mean is P·Qᵀ, in the next Q ← mean of
    Mᵀ·P and the mean is P·Qᵀ, each with the other factor, made orthonormal, of the round before. All factors of a
    bucket travel in one all-reduce, with vectors and matrices that their factors would not make smaller, which are
    averaged exactly. About half of PowerSGD's bytes, and nothing waits for an all-reduce within a bucket.

    `bytes_sent` is the larger of both kinds of rounds, to which a dropped round does not count. The leftover is the
    input less the mean, to be kept by `+ef`; the authors' code (github.com/lzhangbv/acpsgd) keeps the input less what
    the worker's own factor holds of it, which adds up to the same over workers, and only the sum matters. Factors are
    float32, float64 in float64 buckets.

    Attributes:
        rank: columns of the factors, at least 1.
    """

    name: ClassVar[str] = "acpsgd"
    title: ClassVar[str] = "low-rank factors in turns, one all-reduce per round"
    paper: ClassVar[str] = "Zhang et al. 2023, ACP-SGD, arXiv:2306.08881"
    promise: ClassVar[str] = "PowerSGD's accuracy with half of its work and one exchange (Zhang et al. 2023)."
    seen: ClassVar[str] = "Not seen: of the factors in turns each sees every second gradient."
    example: ClassVar[str] = "acpsgd:4+ef"
    bounded: ClassVar[bool] = True

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError(f"acpsgd cannot have {self.rank} columns: give at least 1, as in acpsgd:4.")

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of the larger of two all-reduces; see `AveragingMethod.bytes_sent`."""
        return max(self._bytes_in_turn(shapes, itemsize, workers, rank))

    def expected_bytes(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the mean of both kinds of rounds; see `AveragingMethod.expected_bytes`."""
        return sum(self._bytes_in_turn(shapes, itemsize, workers, rank)) // 2

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._acpsgd import ACPSGDAverager

        return ACPSGDAverager(transport, bucket, rank=self.rank, tag=tag)

    def _bytes_in_turn(
        self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int
    ) -> tuple[int, int]:
        """Returns the bytes of a round that sends P, and of one that sends Q."""
        sizes = [matrix(shape, self.rank) for shape in shapes]
        plain = sum(math.prod(shape) for shape, size in zip(shapes, sizes, strict=True) if not size)
        left, right = (plain + self.rank * sum(size[i] for size in sizes if size) for i in (0, 1))
        itemsize = max(itemsize, FACTOR_ITEMSIZE)
        return exact_bytes(left, itemsize, workers, rank), exact_bytes(right, itemsize, workers, rank)
