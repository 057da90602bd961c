"""The messages of a majority vote: one bit per element, and a byte per block that can abstain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression.checks import check_block
from tightwire.compression.codec import Combine
from tightwire.compression.widened import WidenedCodec

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class VoteMessage(WidenedCodec):
    """A worker's votes, or their outcome: 1, −1, or per block 0; a message of `sign`, not a codec of its own.

    Attributes:
        block: elements that abstain together if all are zero, and are spoiled by one that is not finite.
    """

    name: ClassVar[str] = "sign"
    title: ClassVar[str] = "signs alone"
    paper: ClassVar[str] = "Bernstein et al. 2019, arXiv:1810.05291"
    combine: ClassVar[Combine] = "none"

    block: int = 1024

    def __post_init__(self) -> None:
        check_block(self, self.block)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns a bit per element, rounded up to bytes, and a byte per block."""
        return -(-numel // self.block) + -(-numel // 8)

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        kernels.of(x).encode_votes(x, message, self.block, seed)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        kernels.of(out).decode_votes(message, out, self.block, add)

    def normal_error(self, numel: int) -> float:
        """Returns 1: a vote says nothing of size."""
        return 1.0
