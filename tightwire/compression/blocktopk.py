"""A codec that sends the largest magnitudes of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression import _normal
from tightwire.compression._messages import BLOCK_INDEX_BYTES, unreadable
from tightwire.compression.checks import check, check_ratio
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.topk import TopK
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor


LARGEST_BLOCK = 1 << 16


@final
@dataclass(frozen=True)
class BlockTopK(Codec):
    """Sends the max(1, ⌈ratio·block⌉) elements of largest magnitude of every block exactly.

    Blocks are independent, so that no part of a bucket is forgotten, indices take two bytes, and the selection
    works in cache (ScaleCom's chunk-wise selection, with more than one element per chunk). Equal magnitudes go by
    lowest index; infinity and NaN count as largest. δ is the least share that a block keeps.

    Attributes:
        ratio: of the elements that are sent, in (0, 1].
        block: elements that are ranked together; a multiple of 64.
    """

    name: ClassVar[str] = "blocktopk"
    title: ClassVar[str] = "largest magnitudes of every block"
    paper: ClassVar[str] = "Chen et al. 2020, ScaleCom, arXiv:2104.11125, section 4 (chunk-wise selection)"
    example: ClassVar[str] = "blocktopk:0.01+ef"
    combine: ClassVar[Combine] = "none"
    selects: ClassVar[bool] = True
    orthogonal: ClassVar[bool] = True

    ratio: float
    block: int = 1024

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)
        if self.block < 64 or self.block % 64 or self.block > LARGEST_BLOCK:
            raise PlanError(
                f"blocktopk cannot rank blocks of {self.block}: give a multiple of 64 from 64 to {LARGEST_BLOCK}."
            )

    def kept(self, numel: int) -> tuple[int, int]:
        """Returns how many elements a whole block sends, and the last one, which has fewer elements or none."""
        share = TopK(self.ratio)
        return share.kept(self.block), share.kept(numel % self.block)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 2 + itemsize bytes for every element that is kept."""
        whole, last = self.kept(numel)
        return (numel // self.block * whole + last) * (BLOCK_INDEX_BYTES + itemsize)

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Moves the largest elements of every block to the message; see `Codec.encode`."""
        check(self, x, message)
        if x.numel() > 0:
            kernels.of(x).select_blocks(x, message, self.block, self.kept(x.numel()))

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        check(self, out, message)
        if out.numel() and not kernels.of(out).scatter_blocks(
            message, out, self.block, self.kept(out.numel()), add
        ):
            raise unreadable(self, out)

    def contraction(self, numel: int) -> float | None:
        """Returns the least share that a block keeps."""
        sizes = {min(self.block, numel), numel % self.block} - {0}
        return min((TopK(self.ratio).kept(size) / size for size in sizes), default=1.0)

    def normal_error(self, numel: int) -> float:
        """Returns that of the largest of all; see `Codec.normal_error`."""
        return _normal.selecting(self.ratio)
