"""A stage that picks the elements which reach the largest leftover of their bin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.compression._picking import _Pick
from tightwire.compression.stage import Outcome, StageMemory, zeros
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.buckets import BucketLayout


@final
@dataclass(frozen=True)
class AdaComp(_Pick):
    """Picks, of every bin, the elements that this round's gradient would bring to the bin's largest leftover.

    Algorithm 2: G = R + g, H = G + g, and element i goes iff |H_i| ≥ max |G| of its bin; the others stay in R. How
    many go follows from the gradients; the codec's room bounds it, and what finds no room stays in R too. The
    paper sends signs of one scale; here the codec says what is sent, exact values under `topk`. From memory of the
    paper.

    Attributes:
        bin: consecutive elements that are compared; the paper takes 50 for convolutions and 500 else.
    """

    copies: ClassVar[int] = 2
    name: ClassVar[str] = "adacomp"
    title: ClassVar[str] = "elements that reach their bin's largest leftover"
    paper: ClassVar[str] = "Chen et al. 2018, AdaComp, arXiv:1712.02679, Algorithm 2"
    promise: ClassVar[str] = "40 to 200 times fewer bytes at no loss, by bins (Chen et al. 2018)."
    seen: ClassVar[str] = "Not seen under plain SGD, which its feedback asks for here."
    example: ClassVar[str] = "topk:0.01+adacomp:500"

    bin: int = 500

    def __post_init__(self) -> None:
        if self.bin < 1:
            raise PlanError(f"adacomp cannot compare bins of {self.bin}: give at least 1, as in adacomp:500.")

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns a memory of R."""
        return _Bins(bucket, self.bin)


class _Bins(StageMemory):
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

    def keep(self, outcome: Outcome) -> Outcome:
        self._residue, self._held = self._held, self._residue
        if not outcome.exact:
            self._residue.add_(outcome.leftover)
        return outcome

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
