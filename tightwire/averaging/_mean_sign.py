"""The mean of signs over a transport: every rank adds up the votes on its part of the bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire.answers import Delivery
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging._messages import swap_all
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout
from tightwire.compression._rotated import pack_planes, unpack_planes
from tightwire.compression.votes import VoteMessage
from tightwire.compression.widened import widened

if TYPE_CHECKING:
    from tightwire.transport import Transport


@final
class MeanSignAverager(StatelessAverager):
    """Averages the signs of one bucket; see the method `meansign`."""

    delivery: Delivery = "voted"

    def __init__(
        self,
        transport: Transport,
        bucket: BucketLayout,
        codec: VoteMessage,
        *,
        sum_bits: int,
        num_bytes: int,
        tag: int,
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size and dtype.
            codec: how votes are written.
            sum_bits: of each sum; the largest number stands for none.
            num_bytes: what this rank sends in one run.
            tag: the method's own on every rank.
        """
        self._transport, self._tag, self._codec, self._bits = transport, tag << TAG_BITS, codec, sum_bits
        self._sizes = list(split(bucket.numel, transport.size, PIECE_MULTIPLE))
        self._votes = [
            torch.empty(codec.wire_bytes(size), dtype=torch.uint8, device=bucket.device)
            for size in self._sizes
        ]
        self._received = [torch.empty_like(self._votes[transport.rank]) for _ in self._sizes]
        self._sums = [
            torch.empty(sum_bits * -(-size // 8), dtype=torch.uint8, device=bucket.device)
            for size in self._sizes
        ]
        self.bytes_sent = num_bytes

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Writes the mean of signs to `mean`; see `Averager.run`."""
        transport, codec = self._transport, self._codec
        if transport.size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        rank, size = transport.rank, transport.size
        wide = bucket if bucket.dtype == torch.float32 else widened(bucket)
        for r, (part, message) in enumerate(zip(wide.split(self._sizes), self._votes, strict=True)):
            codec.encode(part, message, seed=message_seed(seed, rank + 1, r))
        swap_all(transport, self._votes, self._received, self._tag)
        self._received[rank].copy_(self._votes[rank])
        total = torch.zeros(self._sizes[rank], device=bucket.device)
        for message in self._received:
            codec.decode(message, total, add=True)
        self._sums[rank] = self._written(total)
        swap_all(transport, [self._sums[rank]] * size, self._sums, self._tag)
        for own, part in zip(self._votes, mean.split(self._sizes), strict=True):
            codec.decode(own, part)
        bucket.sub_(mean)
        for part, message in zip(mean.split(self._sizes), self._sums, strict=True):
            part.copy_(self._read(message, part.numel()))

    def _written(self, total: Tensor) -> Tensor:
        """Returns sums as bytes."""
        none = 2 * self._transport.size + 1
        codes = torch.zeros(-(-total.numel() // 8) * 8, dtype=torch.int32, device=total.device)
        codes[: total.numel()] = torch.where(total.isfinite(), total + self._transport.size, none).int()
        return pack_planes(codes, self._bits)

    def _read(self, message: Tensor, numel: int) -> Tensor:
        """Returns means, (numel,) float64."""
        size = self._transport.size
        codes = unpack_planes(message, self._bits)[:numel]
        return torch.where(codes <= 2 * size, (codes.double() - size) / size, torch.nan)
