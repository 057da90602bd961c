"""A codec that sends the largest magnitudes of a bucket."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression import _normal
from tightwire.compression.checks import check
from tightwire.compression.codec import Codec, Combine
from tightwire.errors import PlanError, TensorError

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class TopK(Codec):
    """Sends the k = max(1, ⌈ratio·n⌉) elements of largest magnitude exactly; k·(4 + itemsize) bytes.

    Equal magnitudes go by lowest index, so the message is a function of the input. Indices are int32,
    ascending; values keep the bucket's dtype. Infinity and NaN count as largest. The leftover is what was not
    sent, bit for bit, and δ = k/n.

    Attributes:
        ratio: of the elements that are sent, in (0, 1].
    """

    name: ClassVar[str] = "topk"
    title: ClassVar[str] = "largest magnitudes, with indices"
    paper: ClassVar[str] = "Aji & Heafield 2017, arXiv:1704.05021; Stich et al. 2018, arXiv:1809.07599"
    promise: ClassVar[str] = (
        "99 % dropped at no loss, with feedback (Aji and Heafield 2017; Stich et al. 2018)."
    )
    seen: ClassVar[str] = (
        "Not seen within 1 %: 800 steps are eight times what an element waits; without feedback far more is"
        " lost."
    )
    example: ClassVar[str] = "topk:0.01"
    combine: ClassVar[Combine] = "none"
    selects: ClassVar[bool] = True
    orthogonal: ClassVar[bool] = True

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise PlanError(f"topk cannot keep a share of {self.ratio}: give one in (0, 1], as in topk:0.01.")

    def kept(self, numel: int) -> int:
        """Returns k."""
        return min(numel, max(1, math.ceil(self.ratio * numel)))

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns k · (4 + itemsize)."""
        return self.kept(numel) * (4 + itemsize)

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Moves the largest elements of `x` to the message; see `Codec.encode`."""
        check(self, x, message)
        if x.numel() > 0:
            kernels.of(x).select_largest(x, message, self.kept(x.numel()))

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        check(self, out, message)
        if out.numel() > 0 and not kernels.of(out).scatter_largest(message, out, self.kept(out.numel()), add):
            raise TensorError(
                f"{self} cannot decode this message for {out.numel()} elements: its indices do not ascend "
                "within them; it was corrupted, or written by another plan; nothing was applied."
            )

    def contraction(self, numel: int) -> float | None:
        """Returns k/n."""
        return self.kept(numel) / numel if numel else 1.0

    def normal_error(self, numel: int) -> float:
        """Returns the share of squares below the k-th largest; see `Codec.normal_error`."""
        return _normal.selecting(self.ratio)
