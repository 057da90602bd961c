"""DoubleSqueeze over a transport: compressed to the owners of parts, and their means compressed to all."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tightwire.architecture.allreduce.losses import share_of_loss
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging._messages import swap_all
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout
from tightwire.compression import Codec
from tightwire.transport import Transport


@final
class DoubleSqueezeAverager(StatelessAverager):
    """Averages one bucket by DoubleSqueeze; see the method `doublesqueeze`."""

    def __init__(
        self, transport: Transport, bucket: BucketLayout, codec: Codec, *, num_bytes: int, tag: int
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size and dtype.
            codec: what travels, both ways.
            num_bytes: what this rank sends in one run.
            tag: the method's own on every rank.
        """
        itemsize = bucket.dtype.itemsize
        self._transport, self._tag, self._codec = transport, tag << TAG_BITS, codec
        self._sizes = list(split(bucket.numel, transport.size, PIECE_MULTIPLE))
        sizes = [codec.wire_bytes(size, itemsize) for size in self._sizes]
        self._outgoing = [torch.empty(size, dtype=torch.uint8, device=bucket.device) for size in sizes]
        self._parts = [torch.empty_like(self._outgoing[transport.rank]) for _ in sizes]
        self._sums = [torch.empty_like(message) for message in self._outgoing]
        self.delivery = codec.delivery
        self.bytes_sent = num_bytes

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`."""
        transport, codec = self._transport, self._codec
        if transport.size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        rank, size = transport.rank, transport.size
        parts, means = bucket.split_with_sizes(self._sizes), mean.split_with_sizes(self._sizes)
        for r, (part, message) in enumerate(zip(parts, self._outgoing, strict=True)):
            if r != rank and part.numel():
                codec.encode(part, message, seed=message_seed(seed, rank + 1, r))
        swap_all(transport, self._outgoing, self._parts, self._tag)
        own = parts[rank]
        for r, message in enumerate(self._parts):
            if r != rank and own.numel():
                codec.decode(message, own, add=True)
        own.div_(size)
        if own.numel():
            codec.encode(own, self._sums[rank], seed=message_seed(seed, 0, rank))
        own.mul_(share_of_loss(makers=1, divided_by=size))
        swap_all(transport, [self._sums[rank]] * size, self._sums, self._tag)
        for message, part in zip(self._sums, means, strict=True):
            if part.numel():
                codec.decode(message, part)
