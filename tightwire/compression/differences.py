"""Stages that send differences to a memory which follows the gradient: EF21 and DIANA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.answers import Answers, Rate, Refusal, Sender
from tightwire.compression.codec import Codec
from tightwire.compression.ef import ErrorFeedback
from tightwire.compression.stage import Outcome, Stage, StageMemory, refuse, zeros
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.buckets import BucketLayout


@final
@dataclass(frozen=True)
class EF21(Stage):
    """Sends the compressed change of the gradient: c = C(g − h), h ← h + c; the mean is that of all h.

    It starts at h = 0, so that the first round sends C(g), as the paper's experiments do (Algorithm 2).
    """

    name: ClassVar[str] = "ef21"
    title: ClassVar[str] = "sends changes of the gradient, for contractive codecs"
    paper: ClassVar[str] = "Richtárik, Sokolov and Fatkhullin 2021, arXiv:2106.05203, Algorithm 2"
    promise: ClassVar[str] = (
        "Better rates than feedback, without bounds on gradients (Richtárik et al. 2021)."
    )
    seen: ClassVar[str] = (
        "Not seen: the theorem is of full gradients; it follows noise of a hundred batches ago, and wants a"
        " moving average before (Fatkhullin et al. 2023)."
    )
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/T); linear under Polyak–Łojasiewicz",
        assumes="smooth loss, whole gradients (no noise), unlike data",
        speed_up="none proven",
        paper="Richtárik, Sokolov & Fatkhullin 2021, arXiv:2106.05203, theorems 1 and 2",
    )
    example: ClassVar[str] = "topk:0.01+ef21"
    place: ClassVar[int] = 0
    copies: ClassVar[int] = 4

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns a memory of h and of its mean."""
        return _Differences(bucket, 1.0)

    def require(self, error: float | None, codec: Sender) -> None:
        """Refuses a program over which the codec is no contraction any more, because sums are encoded again."""
        if error is not None and error >= 1:
            raise PlanError(
                f"{codec}+ef21 would not settle: over this program the squared error of the mean is {error:.2g} times "
                "the mean's square, and ef21 needs less than 1. Use allreduce:allgather, or +ef."
            )

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses what is no contraction: h would not come nearer to the gradient."""
        codec = plan.compression[0]
        if (refusal := super().refusal(plan)) or _contracts(codec):
            return refusal
        others = (DIANA(0.1) if codec.unbiased else ErrorFeedback(),)
        reason = f"{codec}+ef21 would not settle: ef21 needs a contractive codec, and {codec} promises no such thing."
        return refuse(plan, reason, [*others, *(s for s in plan.compression[1:] if s != self)])


@final
@dataclass(frozen=True)
class DIANA(Stage):
    """Sends the compressed difference to a memory that learns: Δ = Q(g − h), h ← h + αΔ; the mean is h̄ + Δ̄.

    Attributes:
        alpha: how fast the memory learns, in (0, 1]; at most 1/(1 + ω), ω being the variance of
            the codec over the program that carries it (theorem 1).
    """

    name: ClassVar[str] = "diana"
    title: ClassVar[str] = "sends differences to a memory, for unbiased codecs"
    paper: ClassVar[str] = "Mishchenko, Gorbunov, Takáč and Richtárik 2019, arXiv:1901.09269, Algorithm 1"
    promise: ClassVar[str] = (
        "Variance that falls as gradients of each worker settle (Mishchenko et al. 2019)."
    )
    seen: ClassVar[str] = (
        "Not seen: gradients of small batches do not settle, and differences are noisier than they are."
    )
    proven: ClassVar[Rate | None] = Rate(
        bound="O(√((1 + ω)/(nT))); linear to a ball where strongly convex",
        assumes="smooth non-convex loss, bounded variance, unlike data",
        speed_up="linear: n, at (1 + ω) times the variance",
        paper="Mishchenko et al. 2019, arXiv:1901.09269, theorems 1 and 4",
    )
    example: ClassVar[str] = "qsgd:127+diana:0.1"
    place: ClassVar[int] = 0
    copies: ClassVar[int] = 4

    alpha: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise PlanError(
                f"diana cannot learn at a rate of {self.alpha}: give one in (0, 1], as in diana:0.1."
            )

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns a memory of h and of its mean."""
        return _Differences(bucket, self.alpha)

    def require(self, error: float | None, codec: Sender) -> None:
        """Refuses a rate beyond theorem 1, ω being the variance of the codec over the program that carries it."""
        if error is not None and self.alpha > 1 / (1 + error):
            raise PlanError(
                f"{codec}+{self} learns too fast: over this program the variance of {codec} is {error:.2g}, which "
                f"allows a rate of 1/(1 + {error:.2g}); give at most diana:{0.99 / (1 + error):.2g}."
            )

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a biased codec: its bias would stay in the mean."""
        codec = plan.compression[0]
        if (refusal := super().refusal(plan)) or codec.unbiased:
            return refusal
        instead = EF21() if _contracts(codec) else ErrorFeedback()
        return refuse(
            plan,
            f"{codec}+{self} would keep the bias of {codec}: diana needs an unbiased codec.",
            [instead, *(stage for stage in plan.compression[1:] if stage != self)],
        )


class _Differences(StageMemory):
    """h, each worker's own, and the mean of h over all workers, which every worker follows by the means it gets."""

    def __init__(self, bucket: BucketLayout, alpha: float) -> None:
        self._alpha = alpha
        self._own, self._mean = zeros(bucket), zeros(bucket)
        self._difference, self._next_mean = zeros(bucket), zeros(bucket)

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        return torch.sub(x, self._own, out=self._difference)

    def after(self, mean: Tensor) -> None:
        import torch

        torch.add(self._mean, mean, alpha=self._alpha, out=self._next_mean)
        mean.add_(self._mean)

    def keep(self, outcome: Outcome) -> Outcome:
        if not outcome.exact:
            self._difference.sub_(outcome.leftover)  # what was sent
        self._own.add_(self._difference, alpha=self._alpha)
        self._mean, self._next_mean = self._next_mean, self._mean
        # What arrived are differences: of the values themselves none waits, and none is stale.
        return Outcome(exact=outcome.exact, leftover=outcome.leftover)

    def kept(self) -> Mapping[str, Tensor]:
        return {"h": self._own, "mean h": self._mean}


def _contracts(codec: object) -> bool:
    return isinstance(codec, Codec) and codec.contraction(2**20) is not None
