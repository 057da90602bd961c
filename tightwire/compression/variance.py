"""A stage that picks the elements whose sum of gradients outgrows its spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.compression._picking import _Pick
from tightwire.compression.stage import Outcome, StageMemory, wide_dtype, zeros
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.buckets import BucketLayout


@final
@dataclass(frozen=True)
class Variance(_Pick):
    """Picks elements whose sum of gradients has outgrown their spread: r² > α·v.

    Algorithm 1: r sums the gradients that were not sent and v their squares; an element that goes starts anew, one
    that waits has v shrunk by ζ. The paper sums squares over the samples of a batch, which nobody but the
    model sees: here a round's gradient is one sample, so that with α ≥ 1 an element waits for at least a second
    round which agrees with the first. The paper sends powers of two; here the codec says what is sent. The rule is from
    memory of the paper.

    Attributes:
        alpha: how clear the sign must be; the paper takes 1 to 2.
        zeta: what stays of v each round, in (0, 1].
    """

    copies: ClassVar[int] = 4
    name: ClassVar[str] = "variance"
    title: ClassVar[str] = "elements whose sum outgrows its spread"
    paper: ClassVar[str] = "Tsuzuku, Imachi and Akiba 2018, arXiv:1802.06058, Algorithm 1"
    promise: ClassVar[str] = "Elements that are ambiguous wait, at no loss (Tsuzuku et al. 2018)."
    seen: ClassVar[str] = "Not seen: batches are small, and nearly all is ambiguous."
    example: ClassVar[str] = "topk:0.01+variance:1.5"

    alpha: float = 1.5
    zeta: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf") or not 0 < self.zeta <= 1:
            raise PlanError(
                f"{self} cannot judge: give alpha above 0 and zeta in (0, 1], as in variance:1.5,zeta=0.999."
            )

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns a memory of r and v."""
        return _Spread(bucket, self)


class _Spread(StageMemory):
    reads_sent = True

    def __init__(self, bucket: BucketLayout, method: Variance) -> None:

        self._alpha, self._zeta = method.alpha, method.zeta
        self._sum, self._next_sum = zeros(bucket), zeros(bucket)
        self._wide = wide_dtype(bucket)
        self._spread, self._next_spread = zeros(bucket), zeros(bucket)

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        total = torch.add(self._sum, x, out=self._next_sum)
        limit = torch.finfo(self._wide).max
        spread = self._next_spread.copy_(x).square_().add_(self._spread).clamp_(max=limit)
        return out.copy_(total).masked_fill_(self._waits(total, spread), 0)

    def keep(self, outcome: Outcome) -> Outcome:
        waits = self._waits(self._next_sum, self._next_spread)
        if outcome.exact:
            self._next_sum.masked_fill_(waits.logical_not(), 0)
        else:
            if outcome.sent is not None:
                waits |= outcome.sent.logical_not()  # found no room
            self._next_sum.copy_(self._next_sum.where(waits, outcome.leftover))
        self._next_spread.mul_(self._zeta).masked_fill_(waits.logical_not_(), 0)
        self._sum, self._next_sum = self._next_sum, self._sum
        self._spread, self._next_spread = self._next_spread, self._spread
        return outcome

    def kept(self) -> Mapping[str, Tensor]:
        return {"variance": self._sum, "variance v": self._spread}

    def _waits(self, total: Tensor, spread: Tensor) -> Tensor:
        """Returns which elements wait; none whose square is too large to tell."""
        square = total.square()
        return (square <= self._alpha * spread) & square.isfinite()
