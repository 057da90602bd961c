"""ATOMO: singular pairs of each matrix, drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.exact import exact_bytes
from tightwire.averaging._matrices import FACTOR_ITEMSIZE, matrix, memory_shape
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport


@final
@dataclass(frozen=True)
class Atomo(AveragingMethod):
    """Sends singular pairs of each matrix, drawn so that their sum is the matrix in expectation.

    Spectral ATOMO: p_i = min(1, s·σ_i/‖σ‖₁) (equation 4 and algorithm 1), the pair scaled by 1/p_i. Drawn by
    systematic sampling instead of one coin per pair, with the same odds, so that a message always has `rank` pairs.
    All-gathered: every worker sends (n − 1)·rank·(rows + columns) elements. Vectors, and matrices that their
    factors would not make smaller, travel exactly. The singular value decomposition takes far longer than any
    other method here.

    Attributes:
        rank: pairs per matrix, at least 1.
    """

    name: ClassVar[str] = "atomo"
    title: ClassVar[str] = "singular vectors drawn at random, unbiased"
    paper: ClassVar[str] = "Wang et al. 2018, arXiv:1806.04090"
    promise: ClassVar[str] = (
        "Unbiased, at the least variance in singular vectors; twice as fast as qsgd to an accuracy (Wang et"
        " al. 2018)."
    )
    seen: ClassVar[str] = "Its variance at rank 3 costs more steps than qsgd's here."
    example: ClassVar[str] = "atomo:3"
    unbiased: ClassVar[bool] = True

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError(f"atomo cannot send {self.rank} pairs: give at least 1, as in atomo:3.")

    def matrix(self, shape: Shape) -> tuple[int, int] | None:
        """Returns the rows and columns that a tensor is factored as, or None where it travels as it is."""
        return matrix(shape, self.rank)

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of the message to all others, and of one all-reduce; see `AveragingMethod.bytes_sent`."""
        itemsize = max(itemsize, FACTOR_ITEMSIZE)
        pairs = self.rank * sum(sum(size) for size in map(self.matrix, shapes) if size)
        plain = sum(math.prod(shape) for shape in shapes if not self.matrix(shape))
        return (workers - 1) * pairs * itemsize + exact_bytes(plain, itemsize, workers, rank)

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._atomo import AtomoAverager

        shapes = [memory_shape(slot) for slot in bucket.slots]
        num_bytes = self.bytes_sent(shapes, bucket.dtype.itemsize, transport.size, transport.rank)
        return AtomoAverager(transport, bucket, rank=self.rank, num_bytes=num_bytes, tag=tag)
