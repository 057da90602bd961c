"""A stage that gives the optimizer the sign of the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.compression.stage import Stage, StageMemory

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.buckets import BucketLayout


@final
@dataclass(frozen=True)
class Signed(Stage):
    """Gives the optimizer the sign of the mean, 0 where the mean is 0; what is sent and left over does not change."""

    name: ClassVar[str] = "signed"
    title: ClassVar[str] = "the sign of the mean as the gradient"
    paper: ClassVar[str] = "Peng, Quesnelle and Kingma 2024, DeMo, arXiv:2411.19870, Algorithm 1"
    promise: ClassVar[str] = "Steps of signs of what all sent keep the norm of updates (Peng et al. 2024)."
    seen: ClassVar[str] = "Seen within demo."
    example: ClassVar[str] = "dct:2+ef:0.999+signed"
    place: ClassVar[int] = 7
    keeps_optimizer: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    serves_dense: ClassVar[bool] = True

    def is_sized(self, shape: tuple[int, ...]) -> bool:
        """Whether it is 1 or -1: always."""
        return True

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns what takes signs; it remembers nothing."""
        return _Sign()


class _Sign(StageMemory):
    def before(self, x: Tensor, out: Tensor) -> Tensor:
        return x

    def after(self, mean: Tensor) -> None:
        import torch

        # A NaN has no sign, and everybody must learn of it.
        sign = mean.sign()
        mean.mul_(0.0)
        torch.add(mean, sign, out=mean)
