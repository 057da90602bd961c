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
from tightwire.buckets import BucketLayout
from tightwire.transport import Transport, Work


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
        spared_bytes: how much less than `bytes_sent` this rank sends in the run under way or just over; known of each
            part before it is sent.
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
        own = parts[rank]

        def add(r: int) -> None:
            self._incoming[r].unpack(self._landed)
            own.add_(self._landed)

        self._swap(
            self._outgoing, self._incoming, pack=lambda r: self._outgoing[r].pack(parts[r]), unpack=add
        )
        own.div_(size)
        self._means[rank].pack(own)
        self._swap(
            [self._means[rank]] * size,
            self._means,
            pack=lambda r: None,
            unpack=lambda r: self._means[r].unpack(parts[r]),
        )

    def keep(self) -> None:
        """Lets the next run's differences be to this one."""
        for part in (*self._outgoing, *self._incoming, *self._means):
            part.keep()

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing: a resumed run sends differences to nothing."""
        return {}

    def _swap(
        self,
        outgoing: Sequence[PackedPart],
        incoming: Sequence[PackedPart],
        *,
        pack: Callable[[int], None],
        unpack: Callable[[int], None],
    ) -> None:
        """Exchanges parts between all ranks, one pair at a time.

        While one is on its way, the one before is unpacked, the next is packed, and lengths are told of it: room for a
        message must be known before anything is sent to where it comes from, or the word of it waits behind that.
        """
        rank, size = self._transport.rank, self._transport.size
        pairs = [((rank + d) % size, (rank - d) % size) for d in range(1, size)]

        def prepare(to: int, source: int) -> tuple[Work, Work]:
            pack(to)
            self.spared_bytes += outgoing[to].most_bytes - outgoing[to].payload.numel()
            length = self._transport.irecv(incoming[source].header, source, self._tag)
            told = self._transport.isend(outgoing[to].header, to, self._tag)
            length.wait()
            incoming[source].check(source)
            return told, self._transport.irecv(incoming[source].payload, source, self._tag)

        told, landing = prepare(*pairs[0])
        for place, (to, _) in enumerate(pairs):
            under_way = (told, landing, self._transport.isend(outgoing[to].payload, to, self._tag))
            if place > 0:
                unpack(pairs[place - 1][1])
            if place + 1 < len(pairs):
                told, landing = prepare(*pairs[place + 1])
            for work in under_way:
                work.wait()
        unpack(pairs[-1][1])
