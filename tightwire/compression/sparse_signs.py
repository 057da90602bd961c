"""Codecs that send some elements, each as a position and a sign."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression.checks import check_ratio
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.sparse import TopK
from tightwire.compression.sparse_blocks import COUNT_BYTES, check_threshold, unreadable
from tightwire.compression.sparse_random import SPOILED, spoil
from tightwire.compression.widened import WidenedCodec

if TYPE_CHECKING:
    from torch import Tensor

ENTRY_BYTES = 4


@final
@dataclass(frozen=True)
class Strom(WidenedCodec):
    """Sends +t or −t for the elements of magnitude t or more: a position and its sign in four bytes; 4 + 4k bytes.

    What an element has beyond ±t is left over, to be sent in later rounds by `+ef`, as in the paper. A message has
    k = max(1, ⌈ratio·n⌉) places; where more elements reach t the k largest of them go, and unused places are zero.

    Attributes:
        t: the threshold, and the magnitude that is sent.
        ratio: of the elements that a message has room for, in (0, 1].
    """

    name: ClassVar[str] = "strom"
    title: ClassVar[str] = "magnitudes that reach a threshold, as signs of it"
    paper: ClassVar[str] = "Strom 2015, Interspeech"
    example: ClassVar[str] = "strom:0.001,ratio=0.01+ef"
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
        """Returns 4 + 4k, or nothing for nothing."""
        return COUNT_BYTES + ENTRY_BYTES * self.room(numel) if numel else 0

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        import torch

        k, loops = self.room(x.numel()), kernels.of(x)
        found = kernels.scratch("found", COUNT_BYTES + 8 * k, torch.uint8, x.device)
        loops.select_above(x, found, k, self.t)
        count = int(found[:COUNT_BYTES].view(torch.int32))
        values = found[COUNT_BYTES + 4 * k :][: 4 * count]
        if math.isfinite(loops.mean_magnitude(values)):
            write_count(message, count)
            loops.mark(x, found[COUNT_BYTES:], count, self.t, message[COUNT_BYTES:])
        else:
            spoil(message)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        place(self, message, self.t, out, add)


@final
@dataclass(frozen=True)
class SBC(WidenedCodec):
    """Sends the mean of the k largest positive elements, or of the k most negative ones, at their positions.

    Algorithm 2: whichever mean is larger in magnitude goes, with up to k = max(1, ⌈ratio·n⌉) positions; the other
    side is left over, for `+ef`. Positions are int32 instead of the paper's Golomb code, so that the size is known
    before encoding; 8 + 4k bytes, unused places being zero.

    Attributes:
        ratio: of the elements that are sent, in (0, 1].
    """

    name: ClassVar[str] = "sbc"
    title: ClassVar[str] = "sparse binary: the largest of one sign, as their mean"
    paper: ClassVar[str] = "Sattler et al. 2018, arXiv:1805.08768, Algorithm 2"
    example: ClassVar[str] = "sbc:0.01+ef"
    combine: ClassVar[Combine] = "none"

    ratio: float

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)

    def room(self, numel: int) -> int:
        """Returns k."""
        return TopK(self.ratio).kept(numel)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 8 + 4k, or nothing for nothing."""
        return COUNT_BYTES + ENTRY_BYTES * self.room(numel) + 4 if numel else 0

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        import torch

        found = kernels.scratch("found", 8 * self.room(x.numel()), torch.uint8, x.device)
        count, mean = kernels.of(x).lean(x, found)
        if count < 0:
            spoil(message)
            return
        kernels.of(x).mark(x, found, count, mean, message[COUNT_BYTES:-4])
        write_count(message, count)
        message[-4:] = torch.tensor([mean], dtype=torch.float32).view(torch.uint8)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        import torch

        place(self, message[:-4], float(message[-4:].clone().view(torch.float32)), out, add)

    def contraction(self, numel: int) -> float | None:
        """Returns 1/(n·k²): the mean that is sent is at least a k-th of the largest magnitude."""
        return 1 / max(numel * self.room(numel) ** 2, 1)


def write_count(message: Tensor, count: int) -> None:
    """Writes how many of a message's places are used."""
    import torch

    message[:COUNT_BYTES] = torch.tensor([count], dtype=torch.int32).view(torch.uint8)


def place(codec: Codec, message: Tensor, magnitude: float, out: Tensor, add: bool) -> None:
    """Writes or adds ± a magnitude at the places of a message, which begins with their count.

    Raises:
        TensorError: places that cannot be.
    """
    import torch

    count = int(message[:COUNT_BYTES].clone().view(torch.int32))
    if count == SPOILED:
        out.fill_(float("nan"))
    elif not 0 <= COUNT_BYTES * count <= message.numel() - COUNT_BYTES or not kernels.of(out).unmark(
        message[COUNT_BYTES:], count, magnitude, out, add
    ):
        raise unreadable(codec, out)
