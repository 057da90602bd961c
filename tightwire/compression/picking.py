"""Stages that pick which elements are worth sending, and keep the others: they stand where feedback would."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.answers import Answers, Refusal
from tightwire.compression.corrections import Momentum
from tightwire.compression.feedback import zeros
from tightwire.compression.stage import Memory, Stage, refuse
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.buckets import BucketLayout


@dataclass(frozen=True)
class _Pick(Stage, abc.ABC):
    """Lets a sparse codec see zeros where an element is to wait; what it has no room for is kept too."""

    place: ClassVar[int] = 0

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a codec that sends zeros as readily as anything, and momentum's mask, which sees no picks."""
        if refusal := super().refusal(plan):
            return refusal
        sender, *stages = plan.compression
        if not hasattr(sender, "ratio"):
            others = "+".join(["topk:0.01", *map(str, stages)])
            return Refusal(
                reason=f"{sender} sends every element, so that {self} saves nothing: it needs a sparse codec.",
                nearest=(str(plan).replace(plan.compression_text, others),),
            )
        if any(isinstance(stage, Momentum) for stage in stages):
            without = [stage for stage in stages if not isinstance(stage, Momentum)]
            reason = (
                f"{plan.compression_text}: momentum masks what the codec sent, and {self} keeps more back."
            )
            return refuse(plan, reason, without)
        return None


@final
@dataclass(frozen=True)
class AdaComp(_Pick):
    """Picks, of every bin, the elements that this round's gradient would bring to the bin's largest leftover.

    Algorithm 2: G = R + g, H = G + g, and element i goes iff |H_i| ≥ max |G| of its bin; the others stay in R. How
    many go follows from the gradients; the codec's room bounds it, and what finds no room stays in R too. The
    paper sends signs of one scale; here the codec says what is sent, exact values under `topk`.

    Attributes:
        bin: consecutive elements that are compared; the paper takes 50 for convolutions and 500 else.
    """

    name: ClassVar[str] = "adacomp"
    title: ClassVar[str] = "elements that reach their bin's largest leftover"
    paper: ClassVar[str] = "Chen et al. 2018, AdaComp, arXiv:1712.02679, Algorithm 2"
    example: ClassVar[str] = "topk:0.01+adacomp:500"

    bin: int = 500

    def __post_init__(self) -> None:
        if self.bin < 1:
            raise PlanError(f"adacomp cannot compare bins of {self.bin}: give at least 1, as in adacomp:500.")

    def memory(self, bucket: BucketLayout, workers: int) -> Memory:
        """Returns a memory of R."""
        return _Bins(bucket, self.bin)


class _Bins(Memory):
    def __init__(self, bucket: BucketLayout, size: int) -> None:
        self._residue, self._held = zeros(bucket), zeros(bucket)
        self._size = size

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        total = torch.add(self._residue, x, out=self._held)
        waits = (total + x).abs_() < self._largest(total)  # False for a NaN, which must go
        out.copy_(total).masked_fill_(waits, 0)
        self._held.masked_fill_(waits.logical_not_(), 0)
        return out

    def keep(self, leftover: Tensor | None) -> Tensor | None:
        self._residue, self._held = self._held, self._residue
        if leftover is not None:
            self._residue.add_(leftover)
        return leftover

    def kept(self) -> Mapping[str, Tensor]:
        return {"adacomp": self._residue}

    def _largest(self, total: Tensor) -> Tensor:
        """Returns the largest magnitude of each element's bin."""
        magnitudes = total.abs()
        whole = total.numel() - total.numel() % self._size
        for part in (magnitudes[:whole].view(-1, self._size), magnitudes[whole:].view(1, -1)):
            if part.numel():
                part.copy_(part.amax(1, keepdim=True).expand_as(part))
        return magnitudes


@final
@dataclass(frozen=True)
class Variance(_Pick):
    """Picks elements whose sum of gradients has outgrown their spread: r² > α·v.

    Algorithm 1: r sums the gradients that were not sent and v their squares; an element that goes starts anew, one
    that waits has v shrunk by ζ. The paper sums squares over the samples of a batch, which nobody but the
    model sees: here a round's gradient is one sample, so that with α ≥ 1 an element waits for at least a second
    round which agrees with the first. The paper sends powers of two; here the codec says what is sent.

    Attributes:
        alpha: how clear the sign must be; the paper takes 1 to 2.
        zeta: what stays of v each round, in (0, 1].
    """

    name: ClassVar[str] = "variance"
    title: ClassVar[str] = "elements whose sum outgrows its spread"
    paper: ClassVar[str] = "Tsuzuku, Imachi and Akiba 2018, arXiv:1802.06058, Algorithm 1"
    example: ClassVar[str] = "topk:0.01+variance:1.5"

    alpha: float = 1.5
    zeta: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf") or not 0 < self.zeta <= 1:
            raise PlanError(
                f"{self} cannot judge: give alpha above 0 and zeta in (0, 1], as in variance:1.5,zeta=0.999."
            )

    def memory(self, bucket: BucketLayout, workers: int) -> Memory:
        """Returns a memory of r and v."""
        return _Spread(bucket, self)


class _Spread(Memory):
    """r in the bucket's dtype, and v in float32 at least, for squares."""

    def __init__(self, bucket: BucketLayout, method: Variance) -> None:
        import torch

        self._alpha, self._zeta = method.alpha, method.zeta
        self._sum, self._next_sum = zeros(bucket), zeros(bucket)
        self._wide = torch.promote_types(bucket.dtype, torch.float32)
        self._spread, self._next_spread = zeros(bucket).to(self._wide), zeros(bucket).to(self._wide)

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        total = torch.add(self._sum, x, out=self._next_sum)
        limit = torch.finfo(self._wide).max
        spread = self._next_spread.copy_(x).square_().add_(self._spread).clamp_(max=limit)
        return out.copy_(total).masked_fill_(self._waits(total, spread), 0)

    def keep(self, leftover: Tensor | None) -> Tensor | None:
        waits = self._waits(self._next_sum, self._next_spread)
        if leftover is not None:
            waits |= leftover == self._next_sum  # found no room
            self._next_sum.copy_(self._next_sum.where(waits, leftover))
        else:
            self._next_sum.masked_fill_(waits.logical_not(), 0)
        self._next_spread.mul_(self._zeta).masked_fill_(waits.logical_not_(), 0)
        self._sum, self._next_sum = self._next_sum, self._sum
        self._spread, self._next_spread = self._next_spread, self._spread
        return leftover

    def kept(self) -> Mapping[str, Tensor]:
        return {"variance": self._sum, "variance v": self._spread}

    def _waits(self, total: Tensor, spread: Tensor) -> Tensor:
        """Returns which elements wait; none whose square is too large to tell."""
        square = total.to(self._wide).square()
        return (square <= self._alpha * spread) & square.isfinite()
