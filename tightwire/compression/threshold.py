"""A codec that sends the magnitudes that reach a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression._messages import COUNT_BYTES, unreadable
from tightwire.compression.checks import check, check_ratio, check_threshold
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.topk import TopK

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class Threshold(Codec):
    """Sends the elements of magnitude t or more exactly, as far as a message has room; 4 + k·(4 + itemsize) bytes.

    The size of a message must be known before it is made: it has k = max(1, ⌈ratio·n⌉) places, of which unused ones
    travel as zeros. Where more elements reach t the k largest of them go, and the others are left over. So t says
    what is worth sending, and the ratio what may be spent.

    Attributes:
        t: the least magnitude that is sent; rounded to the bucket's dtype.
        ratio: of the elements that a message has room for, in (0, 1].
    """

    name: ClassVar[str] = "threshold"
    title: ClassVar[str] = "magnitudes that reach a threshold"
    paper: ClassVar[str] = "Dutta et al. 2020, arXiv:1911.08250; Sahu et al. 2021, arXiv:2108.00951"
    promise: ClassVar[str] = "Better than top-k at the same bytes (Sahu et al. 2021)."
    seen: ClassVar[str] = "The same here."
    example: ClassVar[str] = "threshold:0.001,ratio=0.01+ef"
    combine: ClassVar[Combine] = "none"
    selects: ClassVar[bool] = True
    absolute: ClassVar[bool] = True

    t: float
    ratio: float = 0.01

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)
        check_threshold(self, self.t)

    def room(self, numel: int) -> int:
        """Returns k."""
        return TopK(self.ratio).kept(numel)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 4 + k · (4 + itemsize), or nothing for nothing."""
        return COUNT_BYTES + self.room(numel) * (4 + itemsize) if numel else 0

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Moves what reaches the threshold to the message; see `Codec.encode`."""
        check(self, x, message)
        if x.numel() > 0:
            kernels.of(x).select_above(x, message, self.room(x.numel()), self.t)

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        check(self, out, message)
        if out.numel() > 0 and not kernels.of(out).scatter_sparse(message, out, self.room(out.numel()), add):
            raise unreadable(self, out)

    def normal_error(self, numel: int) -> float:
        """Returns 1, the most that it can be: nothing may reach the threshold."""
        return 1.0
