"""Stages that change each worker's gradient before anything is held back of it: momentum and clipping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.compression.feedback import zeros
from tightwire.compression.stage import Memory, Stage
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.buckets import BucketLayout


@final
@dataclass(frozen=True)
class Momentum(Stage):
    """Sends each worker's velocity u ← m·u + g instead of its gradient: momentum correction.

    With `ef` inside, what is not sent of u accumulates, v ← v + u (section 3.1), and where an element was sent,
    both its u and its v start anew: momentum factor masking (section 3.2). This takes the place of the optimizer's
    own momentum: give it none. A world of one is plain training, which has no momentum then.

    Attributes:
        m: share of the velocity that stays, in [0, 1).
    """

    name: ClassVar[str] = "momentum"
    title: ClassVar[str] = "momentum correction with factor masking"
    paper: ClassVar[str] = (
        "Lin et al. 2018, Deep Gradient Compression, arXiv:1712.01887, sections 3.1 and 3.2"
    )
    example: ClassVar[str] = "topk:0.01+ef+momentum:0.9"
    place: ClassVar[int] = 1
    serves_dense: ClassVar[bool] = True

    m: float

    def __post_init__(self) -> None:
        if not 0 <= self.m < 1:
            raise PlanError(
                f"momentum:{self.m} would never forget: give a share in [0, 1), as in momentum:0.9."
            )

    def memory(self, bucket: BucketLayout, workers: int) -> Memory:
        """Returns a memory of the velocity."""
        return _Velocity(bucket, self.m)


class _Velocity(Memory):
    def __init__(self, bucket: BucketLayout, m: float) -> None:
        self._m = m
        self._velocity, self._next = zeros(bucket), zeros(bucket)

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        return torch.add(x, self._velocity, alpha=self._m, out=self._next)

    def keep(self, leftover: Tensor | None) -> Tensor | None:
        import torch

        if leftover is None:  # a dense round is not one that a choice of elements has made stale
            self._velocity, self._next = self._next, self._velocity
        else:
            torch.ne(leftover, 0, out=self._velocity).mul_(self._next)  # no mask of its own: twice as fast
        return leftover

    def kept(self) -> Mapping[str, Tensor]:
        return {"momentum": self._velocity}


@final
@dataclass(frozen=True)
class Clip(Stage):
    """Scales each worker's gradient of a tensor down to an L2 norm of norm/√n, n being the number of workers.

    Each tensor by itself, as the authors' code does: the norm of the whole gradient is known only after the
    backward pass, when most buckets have left.

    Attributes:
        norm: the most that n independent gradients are to sum up to; above 0.
    """

    name: ClassVar[str] = "clip"
    title: ClassVar[str] = "local gradient clipping, per tensor"
    paper: ClassVar[str] = "Lin et al. 2018, Deep Gradient Compression, arXiv:1712.01887, section 3.2"
    example: ClassVar[str] = "topk:0.01+ef+clip:1"
    place: ClassVar[int] = 2
    serves_dense: ClassVar[bool] = True

    norm: float

    def __post_init__(self) -> None:
        if not 0 < self.norm < float("inf"):
            raise PlanError(
                f"clip:{self.norm} clips nothing or everything: give a norm above 0, as in clip:1."
            )

    def memory(self, bucket: BucketLayout, workers: int) -> Memory:
        """Returns what clips; it remembers nothing."""
        return _Clipping(bucket, self.norm / workers**0.5)


class _Clipping(Memory):
    def __init__(self, bucket: BucketLayout, norm: float) -> None:
        self._norm = norm
        self._sizes = [slot.numel for slot in bucket.slots]

    def before(self, x: Tensor, out: Tensor) -> Tensor:
        import torch

        for part, clipped in zip(x.split(self._sizes), out.split(self._sizes), strict=True):
            norm = torch.linalg.vector_norm(part, dtype=torch.promote_types(part.dtype, torch.float32))
            # A NaN or an Inf stays one: every rank must learn of it.
            torch.mul(part, (self._norm / norm).clamp(max=1.0).nan_to_num(1.0).to(part.dtype), out=clipped)
        return out
