"""PowerSGD: matrices as two thin factors, by power iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.exact import exact_bytes, rounded_bytes
from tightwire.averaging._matrices import FACTOR_ITEMSIZE, matrix
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.compression import Codec, Int4, Int8
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport

FACTORS: dict[str, Codec | None] = {"full": None, "int8": Int8(), "int4": Int4()}


@final
@dataclass(frozen=True)
class PowerSGD(AveragingMethod):
    """Averages matrices by one step of power iteration, warm-started (algorithm 1).

    Per matrix M, its gradient of n dimensions seen as (shape[0], rest): P ← mean of M·Q, orthonormalised;
    Q ← mean of Mᵀ·P; the mean is P·Qᵀ, and Q starts the next round. All P of a bucket travel in one
    all-reduce and all Q in a second. Vectors, and matrices that their factors would not make smaller, travel
    exactly with the P.

    The leftover is the input less the mean (line 9 of algorithm 2), to be kept by `+ef`, without which the method
    does not converge. Factors are float32, float64 in float64 buckets.

    Attributes:
        rank: columns of the factors, at least 1.
        factors: how they travel: `full`, or rounded to `int8` or `int4` (DiLoCoX, arXiv:2506.21263), and with them what
            is not factored; what that loses is left over too.
    """

    name: ClassVar[str] = "powersgd"
    title: ClassVar[str] = "low-rank factors by power iteration"
    paper: ClassVar[str] = "Vogels, Karimireddy and Jaggi 2019, arXiv:1905.13727"
    promise: ClassVar[str] = (
        "The accuracy of SGD at rank 4 and about 1/100 of the bytes (Vogels et al. 2019)."
    )
    seen: ClassVar[str] = (
        "Nearly seen: 800 steps without a dense start cost more than the 1 % that is claimed."
    )
    example: ClassVar[str] = "powersgd:4+ef"

    rank: int
    factors: str = "full"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError(f"powersgd cannot have {self.rank} columns: give at least 1, as in powersgd:4.")
        if self.factors not in FACTORS:
            raise PlanError(
                f"powersgd cannot send factors as {self.factors}: give {', '.join(FACTORS)}, as in "
                "powersgd:16,factors=int4."
            )

    @property
    def codec(self) -> Codec | None:
        """What rounds factors, or None where they travel whole."""
        return FACTORS[self.factors]

    def matrix(self, shape: Shape) -> tuple[int, int] | None:
        """Returns the rows and columns that a tensor is factored as, or None where it travels as it is."""
        return matrix(shape, self.rank)

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of two all-reduces; see `AveragingMethod.bytes_sent`."""
        factored = [m for m in map(self.matrix, shapes) if m]
        plain = sum(math.prod(shape) for shape in shapes if not self.matrix(shape))
        first = plain + self.rank * sum(rows for rows, _ in factored)
        second = self.rank * sum(columns for _, columns in factored)
        itemsize = max(itemsize, FACTOR_ITEMSIZE)
        codec = self.codec
        if codec is None:
            return sum(exact_bytes(numel, itemsize, workers, rank) for numel in (first, second))
        return sum(rounded_bytes(codec, numel, itemsize, workers, rank) for numel in (first, second))

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._powersgd import PowerSGDAverager

        return PowerSGDAverager(transport, bucket, rank=self.rank, codec=self.codec, tag=tag)
