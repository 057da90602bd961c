"""Averaging without loss: parts of a bucket in as few bytes as they need, whose lengths go ahead of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, final

import torch
from torch import Tensor

from tightwire.answers import Delivery
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging._messages import swap_all
from tightwire.buckets import BucketLayout
from tightwire.transport import Transport


class PackedPart(Protocol):
    """One part of a bucket as it travels.

    Attributes:
        header: int64, the lengths that a receiver must know beforehand.
        most_bytes: what the payload takes at most.
    """

    header: Tensor
    most_bytes: int

    @property
    def payload(self) -> Tensor:
        """Bytes, of exactly the length that the header says; where they are, or where they are to be."""

    def pack(self, part: Tensor) -> None:
        """Packs a part: writes header and payload."""

    def unpack(self, part: Tensor) -> None:
        """Writes the part that was packed.

        Raises:
            TensorError: bytes that no part was packed to.
        """

    def check(self, rank: int) -> None:
        """Checks a header that came from `rank`.

        Raises:
            TensorError: lengths that no part can have.
        """

    def keep(self) -> None:
        """Lets the next round differ from this one."""


@final
class PackedAverager:
    """Averages one bucket without loss: each rank gets a part of all others' buckets, and sends the mean of it back.

    Attributes:
        spared_bytes: how much less than `bytes_sent` this rank sends in the run under way or just over, known from
            the lengths before it sends anything.
    """

    lossless = True
    delivery: Delivery = "exact"
    error: float | None = 0.0

    def __init__(
        self,
        transport: Transport,
        bucket: BucketLayout,
        make: Callable[[int], PackedPart],
        *,
        num_bytes: int,
        tag: int,
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size and dtype.
            make: makes room for a part of so many elements.
            num_bytes: what this rank sends in one run at most.
            tag: the method's own on every rank.
        """
        self._transport, self._tag = transport, tag << TAG_BITS
        self._sizes = list(split(bucket.numel, transport.size, PIECE_MULTIPLE))
        own = self._sizes[transport.rank]
        self._outgoing, self._means = ([make(size) for size in self._sizes] for _ in range(2))
        self._incoming = [make(own) for _ in self._sizes]
        self._landed = torch.empty(own, dtype=bucket.dtype, device=bucket.device)
        self.bytes_sent = num_bytes
        self.spared_bytes = 0

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`. Nothing is random."""
        if mean.data_ptr() != bucket.data_ptr():
            mean.copy_(bucket)
        rank, size = self._transport.rank, self._transport.size
        self.spared_bytes = 0
        if size == 1:
            return
        parts = mean.split(self._sizes)
        for r in self._others():
            self._outgoing[r].pack(parts[r])
        self._exchange(self._outgoing, self._incoming)
        own = parts[rank]
        for r in self._others():
            self._incoming[r].unpack(self._landed)
            own.add_(self._landed)
        own.div_(size)
        self._means[rank].pack(own)
        self._exchange([self._means[rank]] * size, self._means)
        for r in self._others():
            self._means[r].unpack(parts[r])

    def keep(self) -> None:
        """Lets the next run's differences be to this one."""
        for part in (*self._outgoing, *self._incoming, *self._means):
            part.keep()

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing: a resumed run sends differences to nothing."""
        return {}

    def _others(self) -> list[int]:
        return [r for r in range(self._transport.size) if r != self._transport.rank]

    def _exchange(self, outgoing: Sequence[PackedPart], incoming: Sequence[PackedPart]) -> None:
        """Exchanges lengths, and then parts of these lengths."""
        headers = [part.header for part in outgoing]
        swap_all(self._transport, headers, [part.header for part in incoming], self._tag)
        for r in self._others():
            incoming[r].check(r)
            self.spared_bytes += outgoing[r].most_bytes - outgoing[r].payload.numel()
        landing = [part.payload for part in incoming]
        swap_all(self._transport, [part.payload for part in outgoing], landing, self._tag)
