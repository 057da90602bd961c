"""A codec that draws elements by their magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression import _normal
from tightwire.compression._messages import COUNT_BYTES, is_spoiled, spoil, unreadable
from tightwire.compression.checks import check_ratio
from tightwire.compression.codec import Combine
from tightwire.compression.topk import TopK
from tightwire.compression.widened import WidenedCodec

if TYPE_CHECKING:
    from torch import Tensor

# Magnitudes are taken so much too large on average, up to an eighth.
HISTOGRAM = 1.06


@final
@dataclass(frozen=True)
class Wangni(WidenedCodec):
    """Sends elements drawn with odds p = min(1, λ|x|) as x/p: unbiased, and of all such of least variance.

    λ makes the odds sum to at most k = max(1, ⌈ratio·n⌉); it is found on a histogram that takes magnitudes an eighth
    too large at most, so that a few places stay unused and travel as zeros. Drawn systematically instead of by one coin
    per element, with the same odds, so that a message never has more than k elements. From memory of the paper. Values
    are float32; an element whose x/p is beyond the largest one is cut to it.

    Attributes:
        ratio: of the elements that a message has room for, in (0, 1].
    """

    name: ClassVar[str] = "wangni"
    title: ClassVar[str] = "elements drawn by their magnitude, unbiased"
    paper: ClassVar[str] = "Wangni et al. 2018, arXiv:1710.09854, equation 6"
    promise: ClassVar[str] = "Unbiased, at the least variance for its sparsity (Wangni et al. 2018)."
    seen: ClassVar[str] = "Its variance costs steps, as it says."
    example: ClassVar[str] = "wangni:0.05"
    combine: ClassVar[Combine] = "none"
    unbiased: ClassVar[bool] = True

    ratio: float

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)

    def room(self, numel: int) -> int:
        """Returns k."""
        return TopK(self.ratio).kept(numel)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 4 + 8k, or nothing for nothing."""
        return COUNT_BYTES + 8 * self.room(numel) if numel else 0

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        if not kernels.of(x).sample_by_magnitude(x, message, self.room(x.numel()), seed):
            spoil(message)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        if is_spoiled(message):
            out.fill_(float("nan"))
        elif not kernels.of(out).scatter_sparse(message, out, self.room(out.numel()), add):
            raise unreadable(self, out)

    def normal_error(self, numel: int) -> float:
        """Returns the variance of x/p; see `Codec.normal_error`."""
        return _normal.sampling(self.ratio / HISTOGRAM)
