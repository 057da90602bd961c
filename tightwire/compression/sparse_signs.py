"""Codecs that send some elements, each as a position and a sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression.checks import check_ratio
from tightwire.compression.codec import Combine
from tightwire.compression.sparse import TopK
from tightwire.compression.sparse_blocks import COUNT_BYTES, check_threshold, unreadable
from tightwire.compression.sparse_random import is_finite, is_spoiled, spoil
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

        k = self.room(x.numel())
        found = kernels.scratch("found", COUNT_BYTES + 8 * k, torch.uint8, x.device)
        kernels.of(x).select_above(x, found, k, self.t)
        count = int(found[:COUNT_BYTES].view(torch.int32))
        indices = found[COUNT_BYTES : COUNT_BYTES + 4 * count].view(torch.int32)
        values = found[COUNT_BYTES + 4 * k :][: 4 * count].view(torch.float32)
        if count and not is_finite(values):
            spoil(message)
            return
        negative = values.signbit()
        x[indices.long()] = values - signed(self.t, negative)
        write_entries(indices, negative, message)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        if is_spoiled(message):
            out.fill_(float("nan"))
            return
        entries = read_entries(message, out)
        if entries is None:
            raise unreadable(self, out)
        indices, negative = entries
        place(indices, signed(self.t, negative), out, add)


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

        if not is_finite(x):
            spoil(message)
            return
        above, below = self._largest(x, negative=False), self._largest(x, negative=True)
        (indices, mean), negative = (below, True) if below[1] > above[1] else (above, False)
        x.index_add_(0, indices, torch.full(indices.shape, mean if negative else -mean, device=x.device))
        write_entries(indices, negative, message[:-4])
        message[-4:] = torch.tensor([mean], dtype=torch.float32).view(torch.uint8)

    def _largest(self, x: Tensor, *, negative: bool) -> tuple[Tensor, float]:
        """Returns the positions of the largest elements of one sign, and the mean magnitude of those."""
        import torch

        k = self.room(x.numel())
        side = kernels.scratch("side", x.numel(), torch.float32, x.device)
        torch.clamp(x, max=0.0, out=side) if negative else torch.clamp(x, min=0.0, out=side)
        found = kernels.scratch("below" if negative else "above", 8 * k, torch.uint8, x.device)
        kernels.of(x).select(side, found, k)
        indices, values = found[: 4 * k].view(torch.int32), found[4 * k :].view(torch.float32)
        count = int(values.count_nonzero())
        total = abs(values.sum(dtype=torch.float64).item())
        mean = torch.tensor(total / max(count, 1), dtype=torch.float32).item()
        return indices if count == k else indices[values != 0], mean

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        import torch

        if is_spoiled(message):
            out.fill_(float("nan"))
            return
        entries = read_entries(message[:-4], out)
        if entries is None:
            raise unreadable(self, out)
        indices, negative = entries
        place(indices, signed(float(message[-4:].clone().view(torch.float32)), negative), out, add)

    def contraction(self, numel: int) -> float | None:
        """Returns 1/(n·k²): the mean that is sent is at least a k-th of the largest magnitude."""
        return 1 / max(numel * self.room(numel) ** 2, 1)


def signed(magnitude: float, negative: Tensor) -> Tensor:
    """Returns ± a magnitude, float32."""
    import torch

    size = torch.full(negative.shape, magnitude, dtype=torch.float32, device=negative.device)
    return torch.where(negative, -size, size)


def write_entries(indices: Tensor, negative: Tensor | bool, message: Tensor) -> None:
    """Writes a count and that many int32, each a position with its sign in the highest bit; zeros after them."""
    import torch

    head = torch.tensor([indices.numel()], dtype=torch.int32, device=indices.device)
    signs = negative * -(2**31) if isinstance(negative, bool) else negative.to(torch.int32) << 31
    entries = torch.cat([head, indices | signs]).view(torch.uint8)
    message[: entries.numel()] = entries
    message[entries.numel() :] = 0


def read_entries(message: Tensor, out: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns the positions in `out`, (count,) int64, and whether each is negative; None if they cannot be."""
    import torch

    numbers = message.clone().view(torch.int32)
    count = int(numbers[0])
    if not 0 <= count < numbers.numel():
        return None
    entries = numbers[1 : 1 + count]
    indices = (entries & 0x7FFFFFFF).long()
    if count and (bool((indices.diff() <= 0).any()) or int(indices[-1]) >= out.numel()):
        return None
    return indices, entries < 0


def place(indices: Tensor, values: Tensor, out: Tensor, add: bool) -> None:
    """Adds values at ascending positions, or writes them, zeros elsewhere."""
    if add:
        out.index_add_(0, indices, values)
    else:
        out.zero_().index_copy_(0, indices, values)
