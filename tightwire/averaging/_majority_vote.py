"""A majority vote at work: every rank counts the votes on its part of the bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire import kernels
from tightwire.architecture.allreduce.memory import mix
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging._owners import swap_all
from tightwire.buckets import BucketLayout
from tightwire.transport import Transport

if TYPE_CHECKING:
    from tightwire.averaging.majority_vote import MajorityVote


@final
class MajorityVoteAverager:
    """Puts one bucket to the vote; see `MajorityVote`. What is left in `bucket` means nothing."""

    lossless = False

    def __init__(self, method: MajorityVote, transport: Transport, bucket: BucketLayout, tag: int) -> None:
        self._transport, self._tag, self._codec = transport, tag << TAG_BITS, method.sender
        self._sizes = list(split(bucket.numel, transport.size, PIECE_MULTIPLE))
        num_bytes = [self._codec.wire_bytes(size) for size in self._sizes]
        self._votes = [torch.empty(size, dtype=torch.uint8) for size in num_bytes]
        self._ballots = torch.empty(transport.size, num_bytes[transport.rank], dtype=torch.uint8)
        self._outcomes = [torch.empty_like(message) for message in self._votes]
        shapes = [slot.shape for slot in bucket.slots]
        self.bytes_sent = method.bytes_sent(shapes, bucket.dtype.itemsize, transport.size, transport.rank)

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Writes the outcome to `mean`; see `Averager.run` and, for what does not hold, `AveragingMethod.votes`."""
        transport, codec = self._transport, self._codec
        if transport.size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        rank, size = transport.rank, transport.size
        for r, (part, message) in enumerate(zip(bucket.split(self._sizes), self._votes, strict=True)):
            codec.encode(part, message, seed=mix(seed, rank + 1, r))
        ballots = list(self._ballots.unbind())
        swap_all(transport, self._votes, ballots, self._tag)
        ballots[rank].copy_(self._votes[rank])
        outcome, numel = self._outcomes[rank], self._sizes[rank]
        if numel:
            kernels.of(bucket).tally(self._ballots, outcome, numel, codec.block, mix(seed, 0, rank))
        swap_all(transport, [outcome] * size, self._outcomes, self._tag)
        for message, part in zip(self._outcomes, mean.split(self._sizes), strict=True):
            codec.decode(message, part)

    def keep(self) -> None:
        """Does nothing: a run leaves nothing to remember."""

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing; see `keep`."""
        return {}
