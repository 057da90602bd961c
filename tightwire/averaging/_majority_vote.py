"""A majority vote at work: every rank counts the votes on its part of the bucket."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tightwire import kernels
from tightwire.answers import Delivery
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging._messages import swap_all
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout
from tightwire.compression.votes import VoteMessage
from tightwire.transport import Transport


@final
class MajorityVoteAverager(StatelessAverager):
    """Puts one bucket to the vote; see the method `sign`. What is left in `bucket` means nothing."""

    delivery: Delivery = "voted"

    def __init__(
        self, transport: Transport, bucket: BucketLayout, codec: VoteMessage, *, num_bytes: int, tag: int
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size and dtype.
            codec: how votes, and their outcome, are written.
            num_bytes: what this rank sends in one run.
            tag: the method's own on every rank.
        """
        self._transport, self._tag, self._codec = transport, tag << TAG_BITS, codec
        self._sizes = list(split(bucket.numel, transport.size, PIECE_MULTIPLE))
        sizes = [codec.wire_bytes(size) for size in self._sizes]
        self._votes = [torch.empty(size, dtype=torch.uint8, device=bucket.device) for size in sizes]
        self._received = torch.empty(
            transport.size, sizes[transport.rank], dtype=torch.uint8, device=bucket.device
        )
        self._outcomes = [torch.empty_like(message) for message in self._votes]
        self.bytes_sent = num_bytes

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Writes the outcome to `mean`; see `Averager.run` and, for what does not hold, `AveragingMethod.votes`."""
        transport, codec = self._transport, self._codec
        if transport.size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        rank, size = transport.rank, transport.size
        for r, (part, message) in enumerate(zip(bucket.split(self._sizes), self._votes, strict=True)):
            codec.encode(part, message, seed=message_seed(seed, rank + 1, r))
        received = list(self._received.unbind())
        swap_all(transport, self._votes, received, self._tag)
        received[rank].copy_(self._votes[rank])
        outcome, numel = self._outcomes[rank], self._sizes[rank]
        if numel:
            kernels.of(bucket).count_votes(
                self._received, outcome, numel, codec.block, message_seed(seed, 0, rank)
            )
        swap_all(transport, [outcome] * size, self._outcomes, self._tag)
        for message, part in zip(self._outcomes, mean.split(self._sizes), strict=True):
            codec.decode(message, part)
