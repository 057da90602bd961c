"""Reductions that send a matrix as two thin factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.exact import exact_bytes
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport

FACTOR_ITEMSIZE = 4  # factors of half-precision buckets travel in float32: their errors would feed each other


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
    """

    name: ClassVar[str] = "powersgd"
    title: ClassVar[str] = "low-rank factors by power iteration"
    paper: ClassVar[str] = "Vogels, Karimireddy and Jaggi 2019, arXiv:1905.13727"
    example: ClassVar[str] = "powersgd:4+ef"

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError(f"powersgd cannot have {self.rank} columns: give at least 1, as in powersgd:4.")

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
        return sum(exact_bytes(numel, itemsize, workers, rank) for numel in (first, second))

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the reducer of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._powersgd import PowerSGDAverager

        return PowerSGDAverager(self, transport, bucket, tag)


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
        """Builds the reducer of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._atomo import AtomoAverager

        return AtomoAverager(self, transport, bucket, tag)


def matrix(shape: Shape, rank: int) -> tuple[int, int] | None:
    """Returns a tensor's rows and columns if its factors of `rank` columns are smaller than it is.

    >>> matrix((64, 3, 3, 3), 4), matrix((64,), 4), matrix((4, 4), 4)
    ((64, 27), None, None)
    """
    if len(shape) < 2:
        return None
    rows, columns = shape[0], math.prod(shape[1:])
    return (rows, columns) if rank * (rows + columns) < rows * columns else None
