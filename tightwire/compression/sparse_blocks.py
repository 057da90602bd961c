"""Codecs that select within bounds: the largest of every block, or what reaches a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression.checks import check, check_ratio
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.sparse import TopK
from tightwire.errors import PlanError, TensorError

if TYPE_CHECKING:
    from torch import Tensor

COUNT_BYTES = 4
BLOCK_INDEX_BYTES = 2
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
        if out.numel() and not kernels.of(out).put_blocks(
            message, out, self.block, self.kept(out.numel()), add
        ):
            raise unreadable(self, out)

    def contraction(self, numel: int) -> float | None:
        """Returns the least share that a block keeps."""
        sizes = {min(self.block, numel), numel % self.block} - {0}
        return min((TopK(self.ratio).kept(size) / size for size in sizes), default=1.0)


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
    example: ClassVar[str] = "threshold:0.001,ratio=0.01+ef"
    combine: ClassVar[Combine] = "none"

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
        if out.numel() > 0 and not kernels.of(out).put(message, out, self.room(out.numel()), add):
            raise unreadable(self, out)


def check_threshold(codec: Codec, t: float) -> None:
    """Checks a threshold.

    Raises:
        PlanError: zero, negative or not finite.
    """
    if not 0 < t < float("inf"):
        raise PlanError(
            f"{codec.name} cannot compare with {t}: give a magnitude above 0, as in {codec.name}:0.001."
        )


def unreadable(codec: Codec, out: Tensor) -> TensorError:
    """Returns the error of a message whose places cannot be."""
    return TensorError(
        f"{codec} cannot decode this message for {out.numel()} elements: its indices do not ascend within them; "
        "it was corrupted, or written by another plan; nothing was applied."
    )
