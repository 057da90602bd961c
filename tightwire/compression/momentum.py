"""A stage that sends velocities instead of gradients: momentum correction."""

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
class Momentum(Stage):
    """Sends each worker's velocity u ← m·u + g instead of its gradient: momentum correction.

    With `ef` inside, what is not sent of u accumulates, v ← v + u (section 3.1), and where an element was chosen and
    sent, both its u and its v start anew: momentum factor masking (section 3.2). Where something of every element
    is sent, as by quantisers and low-rank factors, no velocity is stale and none is masked; nor around `ef21` and
    `diana`, which send differences. This takes the place of the optimizer's own momentum: give it none. A world of
    one is plain training, which has no momentum then.

    Attributes:
        m: share of the velocity that stays, in [0, 1).
    """

    name: ClassVar[str] = "momentum"
    title: ClassVar[str] = "momentum correction with factor masking"
    paper: ClassVar[str] = (
        "Lin et al. 2018, Deep Gradient Compression, arXiv:1712.01887, sections 3.1 and 3.2"
    )
    promise: ClassVar[str] = "0.1 % of gradients at the accuracy of dense ones (Lin et al. 2018)."
    seen: ClassVar[str] = "Seen within dgc at 1 %."
    example: ClassVar[str] = "topk:0.01+ef+momentum:0.9"
    keeps_optimizer: ClassVar[bool] = False
    place: ClassVar[int] = 1
    copies: ClassVar[int] = 2
    serves_dense: ClassVar[bool] = True

    m: float

    def __post_init__(self) -> None:
        if not 0 <= self.m < 1:
            raise PlanError(
                f"momentum:{self.m} would never forget: give a share in [0, 1), as in momentum:0.9."
            )

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns a memory of the velocity."""
        return _Velocity(bucket, self.m)


class _Velocity(StageMemory):
    reads_sent = True

    def __init__(self, bucket: BucketLayout, m: float) -> None:
        self._m = m
        self._velocity, self._next = zeros(bucket), zeros(bucket)

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        return torch.add(x, self._velocity, alpha=self._m, out=self._next)

    def keep(self, outcome: Outcome) -> Outcome:
        self._velocity, self._next = self._next, self._velocity
        if outcome.sent is not None:
            self._velocity.masked_fill_(outcome.sent, 0)
        return outcome

    def kept(self) -> Mapping[str, Tensor]:
        return {"momentum": self._velocity}
