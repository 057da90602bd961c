"""Dion: orthonormal updates from low-rank factors; the optimizer's momentum is what was not sent."""

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
class Dion(AveragingMethod):
    """Gives the optimizer an orthonormal direction of each matrix, from a momentum that every worker keeps itself.

    Per matrix of m rows and n columns (algorithm 1, with its data-parallel exchange): B ← M + G, each worker's own;
    P ← orthonormalised mean of BQ; R ← mean of BᵀP; M ← B − (1 − μ)PRᵀ; Q ← R with columns of length 1; and in the
    place of the mean gradient stands √(m/n)·PQᵀ. So `torch.optim.SGD` without momentum, over the matrices, makes Dion's
    step; vectors, and matrices that their factors would not make smaller, are averaged as they are, for an optimizer of
    their own (the paper takes Lion or AdamW):

        run = tw.attach(model, [SGD(matrices, lr=0.01), AdamW(others, lr=1e-3)], "bsp/allreduce/dion:64")

    The authors' code (github.com/microsoft/dion) turns matrices of more columns than rows over, so that the factor
    with exactly orthonormal columns is the longer one; here it is P always, as in algorithm 1.

    The paper reports Muon's loss per step, and better for larger models, at the bytes of its factors: rank·(m + n).
    A world of one is plain training.

    Attributes:
        rank: columns of the factors.
        mu: share of what was applied that stays in the momentum, in [0, 1).
    """

    name: ClassVar[str] = "dion"
    title: ClassVar[str] = "orthonormal updates by low-rank factors, with their momentum"
    paper: ClassVar[str] = "Ahn et al. 2025, Dion, arXiv:2504.05295, algorithms 1 and 2"
    promise: ClassVar[str] = (
        "Muon's loss by low-rank factors, the better the larger the model (Ahn et al. 2025)."
    )
    seen: ClassVar[str] = (
        "No study has Muon on all data; a model of 82 thousand parameters needs more steps than with SGD "
        "and momentum."
    )
    example: ClassVar[str] = "dion:8"
    votes: ClassVar[bool] = True
    keeps_optimizer: ClassVar[bool] = False
    absolute: ClassVar[bool] = True
    weighs: ClassVar[bool] = False
    no_feedback: ClassVar[str] = "what is left over is the momentum, and stays inside"

    rank: int
    mu: float = 0.95

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError(f"dion cannot have {self.rank} columns: give at least 1, as in dion:64.")
        if not 0 <= self.mu < 1:
            raise PlanError(f"dion:mu={self.mu} would never apply anything: give a share in [0, 1).")

    def is_sized(self, shape: Shape) -> bool:
        """Whether it is a matrix, of which the outcome is orthonormal."""
        return matrix(shape, self.rank) is not None

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of two all-reduces; see `AveragingMethod.bytes_sent`."""
        factored = [m for shape in shapes if (m := matrix(shape, self.rank))]
        plain = sum(math.prod(shape) for shape in shapes if not matrix(shape, self.rank))
        first = plain + self.rank * sum(rows for rows, _ in factored)
        second = self.rank * sum(columns for _, columns in factored)
        itemsize = max(itemsize, FACTOR_ITEMSIZE)
        return sum(exact_bytes(numel, itemsize, workers, rank) for numel in (first, second))

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._dion import DionAverager

        return DionAverager(transport, bucket, rank=self.rank, mu=self.mu, tag=tag)
