"""A stage that sends what Lion would step with: a blend of its momentum and the gradient."""

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
class Lion(Stage):
    """Sends β₁m + (1 − β₁)g, and then m ← β₂m + (1 − β₂)g, each worker's own: Lion without its sign.

    Around `sign` (majority vote) or `meansign` (averaging) it is Distributed Lion, for `torch.optim.SGD` without
    momentum, whose `lr` and `weight_decay` are Lion's: x ← x − lr·(Δ + λx). With `+signed` around exact means it is
    Lion itself, of the whole batch. The paper reports the quality of Lion and AdamW on means of gradients at one bit an
    element each way (majority). The authors' code (github.com/kyleliang919/distributed-lion-pytorch) has the vote
    alone, and counts zeros and ties as −1; see `sign`. A world of one is plain training, which has no momentum then.

    Attributes:
        beta1: share of the momentum in what is sent, in [0, 1).
        beta2: share of the momentum that stays, in [0, 1).
    """

    name: ClassVar[str] = "lion"
    title: ClassVar[str] = "sends Lion's blend of momentum and gradient"
    paper: ClassVar[str] = (
        "Liu et al. 2024, Distributed Lion, arXiv:2404.00438, Algorithm 1; Chen et al. 2023, Lion, arXiv:2302.06675"
    )
    promise: ClassVar[str] = "As good as Lion on all data, at a bit an element each way (Liu et al. 2024)."
    seen: ClassVar[str] = (
        "Not seen: signs are steps of one size, and 800 steps do not bring their rate down far enough."
    )
    example: ClassVar[str] = "sign+lion"
    keeps_optimizer: ClassVar[bool] = False
    place: ClassVar[int] = 1
    copies: ClassVar[int] = 3
    serves_dense: ClassVar[bool] = True

    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise PlanError(f"{self} would never forget: give shares in [0, 1), as in lion:0.9,beta2=0.99.")

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns a memory of the momentum."""
        return _Momentum(bucket, self.beta1, self.beta2)


class _Momentum(StageMemory):
    def __init__(self, bucket: BucketLayout, beta1: float, beta2: float) -> None:
        self._beta1, self._beta2 = beta1, beta2
        self._momentum, self._next, self._sent = zeros(bucket), zeros(bucket), zeros(bucket)

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        torch.lerp(x, self._momentum, self._beta2, out=self._next)
        return torch.lerp(x, self._momentum, self._beta1, out=self._sent)

    def keep(self, outcome: Outcome) -> Outcome:
        self._momentum, self._next = self._next, self._momentum
        return outcome

    def kept(self) -> Mapping[str, Tensor]:
        return {"lion": self._momentum}
