"""Medians and trimmed means over a transport: owners of parts see all workers' values."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire.answers import Delivery
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.program import split
from tightwire.averaging._messages import swap_all
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout

if TYPE_CHECKING:
    from tightwire.transport import Transport


@final
class RobustAverager(StatelessAverager):
    """Takes the middle of one bucket; see the methods `median` and `trimmed`."""

    delivery: Delivery = "rounded"

    def __init__(
        self, transport: Transport, bucket: BucketLayout, *, dropped: int, num_bytes: int, tag: int
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size and dtype.
            dropped: how many of the largest values do not count, and of the smallest.
            num_bytes: what this rank sends in one run.
            tag: the method's own on every rank.
        """
        self._transport, self._tag, self._dropped = transport, tag << TAG_BITS, dropped
        self._sizes = list(split(bucket.numel, transport.size))
        self._received = torch.empty(
            transport.size, self._sizes[transport.rank], dtype=bucket.dtype, device=bucket.device
        )
        self.bytes_sent = num_bytes

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Writes what the middle says to `mean`; see `Averager.run`."""
        transport, rank = self._transport, self._transport.rank
        if transport.size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        parts = [part.contiguous() for part in bucket.split(self._sizes)]
        self._received[rank].copy_(parts[rank])
        swap_all(transport, parts, list(self._received.unbind()), self._tag)
        outcomes = list(mean.split(self._sizes))
        outcomes[rank].copy_(self._middle())
        swap_all(transport, [outcomes[rank]] * transport.size, outcomes, self._tag)
        bucket.sub_(mean)

    def _middle(self) -> Tensor:
        """Returns the mean of the values that count; NaN where a worker has none that is a number."""
        wide = torch.promote_types(self._received.dtype, torch.float32)
        values = self._received.to(wide).sort(0).values
        counted = values[self._dropped : values.shape[0] - self._dropped]
        middle = (counted / counted.shape[0]).sum(0)  # divided first: sums of large values would overflow
        return torch.where(values.isfinite().all(0), middle, torch.nan)
