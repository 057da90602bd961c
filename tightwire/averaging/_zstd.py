"""Lossless compression over a transport: parts of a bucket as byte planes, whose lengths go ahead of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from tightwire import kernels
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging._messages import swap_all
from tightwire.averaging._zstandard import Zstandard, zstandard
from tightwire.buckets import BucketLayout
from tightwire.errors import TensorError
from tightwire.transport import Transport

LENGTH_BYTES = 8  # of the length of one plane, in a header
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# A plane is tried on so many bytes from its middle, and travels raw unless they shrink by a twentieth.
SAMPLE_BYTES = 8192
WORTH = 0.95


class SqueezedPart:
    """One part of the bucket as it travels: the length of each plane, and the planes, squeezed or raw.

    Attributes:
        header: (itemsize,) int64, the bytes of each plane; as many as the part has elements where it is raw.
        raw_bytes: what the planes take where nothing shrinks.
    """

    def __init__(self, numel: int, dtype: torch.dtype, squeezer: Zstandard, *, delta: bool) -> None:
        self._numel, self._squeezer = numel, squeezer
        self._integers = _INTEGERS[dtype.itemsize]
        self.header = torch.zeros(dtype.itemsize, dtype=torch.int64)
        self.raw_bytes = numel * dtype.itemsize
        self._planes, self._room = (torch.empty(self.raw_bytes, dtype=torch.uint8) for _ in range(2))
        # What the last round that counted held, and what this one does.
        self._base, self._now = (torch.zeros(numel if delta else 0, dtype=self._integers) for _ in range(2))

    @property
    def payload(self) -> Tensor:
        """The planes, of exactly the bytes that the header says; where they are, or where they are to be."""
        return self._room[: int(self.header.sum())]

    def pack(self, part: Tensor) -> None:
        """Squeezes a part."""
        bits = part.view(self._integers)
        if self._base.numel():
            self._now.copy_(bits)
            bits = bits ^ self._base
        kernels.of(part).split_planes(bits, self._planes)
        room, end = self._room.numpy(), 0
        for place, plane in enumerate(self._planes.view(self.header.numel(), self._numel)):
            squeezed = self._squeeze(plane.numpy())
            room[end : end + squeezed.size] = squeezed
            self.header[place] = squeezed.size
            end += squeezed.size

    def unpack(self, part: Tensor) -> None:
        """Writes the part that was packed.

        Raises:
            TensorError: bytes that are no squeezed plane.
        """
        room, end = self._room.numpy(), 0
        for place, plane in enumerate(self._planes.view(self.header.numel(), self._numel)):
            length = int(self.header[place])
            squeezed = room[end : end + length]
            if length < self._numel:
                squeezed = np.frombuffer(self._squeezer.restore(squeezed, self._numel), np.uint8)
            plane.numpy()[:] = squeezed
            end += length
        bits = part.view(self._integers)
        kernels.of(part).join_planes(self._planes, bits)
        if self._base.numel():
            bits.bitwise_xor_(self._base)
            self._now.copy_(bits)

    def check(self, rank: int) -> None:
        """Checks a header that came from `rank`.

        Raises:
            TensorError: lengths that no plane can have.
        """
        if not all(0 <= length <= self._numel for length in self.header.tolist()):
            raise TensorError(
                f"rank {rank} announced planes of {self.header.tolist()} bytes for {self._numel} elements: truncated, "
                "or written by another plan or version; nothing was applied."
            )

    def keep(self) -> None:
        """Lets the next round differ from this one."""
        self._base, self._now = self._now, self._base

    def _squeeze(self, plane: np.ndarray) -> np.ndarray:
        middle = max(0, (plane.size - SAMPLE_BYTES) // 2)
        sample = plane[middle : middle + SAMPLE_BYTES]
        if len(self._squeezer.compress(sample)) > WORTH * sample.size:
            return plane
        squeezed = np.frombuffer(self._squeezer.compress(plane), np.uint8)
        return squeezed if squeezed.size < plane.size else plane


@final
class ZstdAverager:
    """Averages one bucket without loss; see the method `zstd`.

    Attributes:
        spared_bytes: how much less than `bytes_sent` this rank sends in the run under way or just over, known from
            the lengths before it sends anything.
    """

    lossless = True

    def __init__(
        self,
        transport: Transport,
        bucket: BucketLayout,
        *,
        level: int,
        delta: bool,
        num_bytes: int,
        tag: int,
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size and dtype.
            level: of zstd.
            delta: whether elements are exclusive-ored with those of the last round that counted.
            num_bytes: what this rank sends in one run at most.
            tag: the method's own on every rank.

        Raises:
            PlanError: there is no zstd here.
        """
        self._transport, self._tag = transport, tag << TAG_BITS
        self._sizes = list(split(bucket.numel, transport.size, PIECE_MULTIPLE))
        squeezer, own = zstandard(level), self._sizes[transport.rank]
        self._outgoing, self._means = (
            [SqueezedPart(size, bucket.dtype, squeezer, delta=delta) for size in self._sizes]
            for _ in range(2)
        )
        self._incoming = [SqueezedPart(own, bucket.dtype, squeezer, delta=delta) for _ in self._sizes]
        self._landed = torch.empty(own, dtype=bucket.dtype)
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
        self._trade(self._outgoing, self._incoming)
        own = parts[rank]
        for r in self._others():
            self._incoming[r].unpack(self._landed)
            own.add_(self._landed)
        own.div_(size)
        self._means[rank].pack(own)
        self._trade([self._means[rank]] * size, self._means)
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

    def _trade(self, outgoing: Sequence[SqueezedPart], incoming: Sequence[SqueezedPart]) -> None:
        """Exchanges lengths, and then parts of these lengths."""
        headers = [part.header for part in outgoing]
        assert all(header.nbytes == LENGTH_BYTES * header.numel() for header in headers)
        swap_all(self._transport, headers, [part.header for part in incoming], self._tag)
        for r in self._others():
            incoming[r].check(r)
            self.spared_bytes += outgoing[r].raw_bytes - outgoing[r].payload.numel()
        landing = [part.payload for part in incoming]
        swap_all(self._transport, [part.payload for part in outgoing], landing, self._tag)
