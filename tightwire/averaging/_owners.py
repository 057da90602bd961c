"""Reductions in which every rank owns a part of the bucket: parts go to their owners, and sums come back.

Ok-Topk and DoubleSqueeze at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire.architecture.allreduce.exact import exact_runner
from tightwire.architecture.allreduce.memory import mix
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging._butterfly import put, take
from tightwire.buckets import BucketLayout
from tightwire.transport import Transport

if TYPE_CHECKING:
    from tightwire.averaging.double_squeeze import DoubleSqueeze
    from tightwire.averaging.sparse import OkTopK


def swap_all(transport: Transport, outgoing: Sequence[Tensor], landing: Sequence[Tensor], tag: int) -> None:
    """Sends `outgoing[r]` to every other rank r and receives `landing[r]` from it, one pair of ranks at a time.

    Contract: every rank; blocks; sends the outgoing bytes, this rank's own place left out.
    """
    rank, size = transport.rank, transport.size
    distances = range(1, size)
    arriving = [transport.irecv(landing[rank - d], (rank - d) % size, tag) for d in distances]
    for d, work in zip(distances, arriving, strict=True):
        peer = (rank + d) % size
        leaving = transport.isend(outgoing[peer], peer, tag)
        work.wait()
        leaving.wait()


@final
class OkTopKAverager:
    """Averages one bucket by Ok-Topk; see `OkTopK`."""

    lossless = False

    def __init__(self, method: OkTopK, transport: Transport, bucket: BucketLayout, tag: int) -> None:
        numel, itemsize = bucket.numel, bucket.dtype.itemsize
        count = method.capacity(numel, itemsize, transport.size)
        assert count is not None, "dense buckets travel by an exact all-reduce"
        self._transport, self._tag, self._count = transport, (tag + 1) << TAG_BITS, count
        self._kept = method.kept(numel)
        self._selected = torch.empty(self._kept * (4 + itemsize), dtype=torch.uint8)
        self._boundaries = exact_runner(transport, transport.size - 1, torch.float64, tag)
        self._outgoing, self._landing = (
            list(torch.empty(transport.size, count * (4 + itemsize), dtype=torch.uint8).unbind())
            for _ in range(2)
        )
        shapes = [slot.shape for slot in bucket.slots]
        self.bytes_sent = method.bytes_sent(shapes, itemsize, transport.size, transport.rank)

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`. Nothing is random."""
        if self._transport.size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        sizes = self._regions(bucket)
        parts, sums = bucket.split_with_sizes(sizes), mean.zero_().split_with_sizes(sizes)
        rank = self._transport.rank
        for part, message in zip(parts, self._outgoing, strict=True):
            take(part, self._count, message)
        swap_all(self._transport, self._outgoing, self._landing, self._tag)
        self._landing[rank].copy_(self._outgoing[rank])
        for message in self._landing:
            put(message, self._count, sums[rank])
        message = self._outgoing[rank]
        take(sums[rank], self._count, message)
        parts[rank].add_(sums[rank])
        swap_all(self._transport, [message] * len(parts), self._landing, self._tag)
        self._landing[rank].copy_(message)
        sums[rank].zero_()
        for message, region in zip(self._landing, sums, strict=True):
            put(message, self._count, region)
        mean.div_(self._transport.size)

    def keep(self) -> None:
        """Does nothing: a run leaves nothing to remember."""

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing; see `keep`."""
        return {}

    def _regions(self, bucket: Tensor) -> list[int]:
        """Returns the sizes of regions that hold, on average over the workers, equally many large elements."""
        size, numel = self._transport.size, bucket.numel()
        take(bucket, self._kept, self._selected)
        places = self._selected[: 4 * self._kept].view(torch.int32)
        put(self._selected, self._kept, bucket)
        cuts = places[[self._kept * j // size for j in range(1, size)]].double()
        self._boundaries.run(cuts, cuts)
        bounds = [0]
        for j, cut in enumerate(cuts.tolist(), start=1):
            # Every region has room for a whole message.
            least, most = bounds[-1] + self._count, numel - (size - j) * self._count
            bounds.append(min(max(round(cut), least), most))
        return [end - start for start, end in zip(bounds, [*bounds[1:], numel], strict=True)]


@final
class DoubleSqueezeAverager:
    """Averages one bucket by DoubleSqueeze; see `DoubleSqueeze`."""

    lossless = False

    def __init__(self, method: DoubleSqueeze, transport: Transport, bucket: BucketLayout, tag: int) -> None:
        itemsize = bucket.dtype.itemsize
        self._transport, self._tag, self._codec = transport, tag << TAG_BITS, method.sender
        self._sizes = split(bucket.numel, transport.size, PIECE_MULTIPLE)
        num_bytes = [self._codec.wire_bytes(size, itemsize) for size in self._sizes]
        self._outgoing = [torch.empty(size, dtype=torch.uint8) for size in num_bytes]
        self._parts = [torch.empty_like(self._outgoing[transport.rank]) for _ in num_bytes]
        self._sums = [torch.empty_like(message) for message in self._outgoing]
        shapes = [slot.shape for slot in bucket.slots]
        self.bytes_sent = method.bytes_sent(shapes, itemsize, transport.size, transport.rank)

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`."""
        transport, codec = self._transport, self._codec
        if transport.size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        rank, size = transport.rank, transport.size
        parts, means = bucket.split_with_sizes(list(self._sizes)), mean.split_with_sizes(list(self._sizes))
        for r, (part, message) in enumerate(zip(parts, self._outgoing, strict=True)):
            if r != rank and part.numel():
                codec.encode(part, message, seed=mix(seed, rank + 1, r))
        swap_all(transport, self._outgoing, self._parts, self._tag)
        own = parts[rank]
        for r, message in enumerate(self._parts):
            if r != rank and own.numel():
                codec.decode(message, own, add=True)
        own.div_(size)
        if own.numel():
            codec.encode(own, self._sums[rank], seed=mix(seed, 0, rank))
        own.mul_(size)
        swap_all(transport, [self._sums[rank]] * size, self._sums, self._tag)
        for message, part in zip(self._sums, means, strict=True):
            if part.numel():
                codec.decode(message, part)

    def keep(self) -> None:
        """Does nothing: a run leaves nothing to remember."""

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing; see `keep`."""
        return {}
