"""A stage that adds what messages did not carry to what is sent next: error feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.answers import Rate
from tightwire.compression.stage import Outcome, Stage, StageMemory, zeros
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.buckets import BucketLayout


@final
@dataclass(frozen=True)
class ErrorFeedback(Stage):
    """Adds the leftover of each round to the next: e ← p − C(p) with p = g + decay·e.

    A decay below 1 makes the leftover a momentum of which is taken what is sent (DeMo, arXiv:2411.19870), or lets
    old errors fade (ECQ-SGD, arXiv:1806.08054).

    Attributes:
        decay: what stays of the leftover, in (0, 1].
    """

    name: ClassVar[str] = "ef"
    title: ClassVar[str] = "error feedback"
    paper: ClassVar[str] = "Seide et al. 2014, Interspeech; Karimireddy et al. 2019, arXiv:1901.09847"
    promise: ClassVar[str] = (
        "What is left out comes later, and any contractive codec converges as SGD does (Karimireddy et al. "
        "2019)."
    )
    seen: ClassVar[str] = "Seen: signs, top-k and integers lose several times as much without it."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT)) + O(1/(δ²T)), δ being the codec's contraction",
        assumes="smooth non-convex loss, bounded variance, bounded gradients",
        speed_up="linear: n, once T is above n/δ⁴",
        paper="Karimireddy et al. 2019, arXiv:1901.09847, theorem 2; Stich & Karimireddy 2020, arXiv:1909.05350",
    )
    example: ClassVar[str] = "topk:0.01+ef"
    place: ClassVar[int] = 0
    copies: ClassVar[int] = 1

    decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise PlanError(
                f"ef cannot keep {self.decay} of what is left over: give a share in (0, 1], as in ef:0.999."
            )

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns a memory of the leftover."""
        return _Leftover(zeros(bucket), self.decay)


class _Leftover(StageMemory):
    def __init__(self, leftover: Tensor, decay: float) -> None:
        self._leftover, self._decay = leftover, decay

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        return torch.add(x, self._leftover, alpha=self._decay, out=out)

    def keep(self, outcome: Outcome) -> Outcome:
        if outcome.exact:
            self._leftover.zero_()
        else:
            self._leftover, outcome.leftover = outcome.leftover, self._leftover
        return outcome

    def kept(self) -> Mapping[str, Tensor]:
        return {"ef": self._leftover}
