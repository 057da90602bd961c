"""A stage that compresses moving averages of gradients instead of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.compression.stage import Outcome, Stage, StageMemory, zeros
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.buckets import BucketLayout


@final
@dataclass(frozen=True)
class MovingAverage(Stage):
    """Sends β·m̄ + (1 − β)·g, which changes slowly, and gives back the gradient that explains the new mean m̄.

    An optimizer that averages with the same β, such as Adam, then holds exactly m̄ as its first moment, and where
    nothing is compressed it sees the mean gradient. What it squares is another matter: the explaining gradient
    carries the compression's error times 1/(1 − β), so its second moment must not learn from compressed rounds.
    `tightwire.optim` has optimizers that do not, and learn from the plan which rounds these are. In a round that is
    sent as it is, leftovers of other rounds stay back, so that what is learnt from is that round's mean gradient.

    Attributes:
        beta: share of the average that stays, in (0, 1); that of the optimizer.
    """

    name: ClassVar[str] = "ema"
    title: ClassVar[str] = "sends moving averages, for Adam and its kin"
    paper: ClassVar[str] = "Tang et al. 2021, 1-bit Adam, arXiv:2102.02888, Algorithm 1"
    promise: ClassVar[str] = (
        "Momenta in one bit, with the variance frozen, learn as Adam does (Tang et al. 2021)."
    )
    seen: ClassVar[str] = "Seen under AdamW's kin."
    example: ClassVar[str] = "doublesqueeze+ef+ema:0.9+dense-first:1000"
    place: ClassVar[int] = 1
    copies: ClassVar[int] = 2
    keeps_optimizer: ClassVar[bool] = False

    beta: float

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise PlanError(
                f"ema:{self.beta} averages nothing or for ever: give a share in (0, 1), as in ema:0.9."
            )

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns a memory of the mean's moving average."""
        return _Average(bucket, self.beta)


class _Average(StageMemory):
    # Explained by one gradient, a leftover would be in it 1/(1 − β) times, and squared by the optimizer.
    sends_exactly = True

    def __init__(self, bucket: BucketLayout, beta: float) -> None:
        self._beta = beta
        self._average, self._next = zeros(bucket), zeros(bucket)

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        return torch.lerp(x, self._average, self._beta, out=self._next)

    def after(self, mean: Tensor) -> None:
        self._next.copy_(mean)
        mean.sub_(self._average, alpha=self._beta).div_(1 - self._beta)

    def keep(self, outcome: Outcome) -> Outcome:
        self._average, self._next = self._next, self._average
        return outcome

    def kept(self) -> Mapping[str, Tensor]:
        return {"ema": self._average}
