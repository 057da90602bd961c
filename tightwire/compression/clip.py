"""A stage that clips each worker's gradient before anything is held back of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.compression.stage import Stage, StageMemory
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.buckets import BucketLayout


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
    promise: ClassVar[str] = "Keeps momentum correction from bursting (Lin et al. 2018)."
    seen: ClassVar[str] = "Seen within dgc."
    example: ClassVar[str] = "topk:0.01+ef+clip:1"
    place: ClassVar[int] = 2
    serves_dense: ClassVar[bool] = True

    norm: float

    def __post_init__(self) -> None:
        if not 0 < self.norm < float("inf"):
            raise PlanError(
                f"clip:{self.norm} clips nothing or everything: give a norm above 0, as in clip:1."
            )

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory:
        """Returns what clips; it remembers nothing."""
        return _Clipping(bucket, self.norm / workers**0.5)


class _Clipping(StageMemory):
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
