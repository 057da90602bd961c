"""gTop-k and SparCML over a transport: sums that travel as their largest elements, or dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from tightwire.answers import Delivery
from tightwire.architecture.allreduce.losses import share_of_loss
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.averaging._doubling import Move, doubling_moves
from tightwire.averaging._messages import add_message, take_largest
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout
from tightwire.transport import Transport

INDEX_BYTES = 4
# Returns how many elements the message of a sum of so many contributions has, or None where the sum travels dense.
Capacity = Callable[[int, int, int], int | None]


@final
class SparseDoublingAverager(StatelessAverager):
    """Averages one bucket by recursive doubling of sparse sums; see the methods `gtopk` and `sparcml`.

    The sum lies densely in `mean`, from where its largest elements are taken for each message.
    """

    delivery: Delivery = "selected"

    def __init__(
        self, transport: Transport, bucket: BucketLayout, capacity: Capacity, *, num_bytes: int, tag: int
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size and dtype.
            capacity: of numel, itemsize and contributions: the elements of a message, or None for a dense sum.
            num_bytes: what this rank sends in one run.
            tag: the method's own on every rank.
        """
        self._capacity, self._transport, self._tag = capacity, transport, tag << TAG_BITS
        self._numel, self._itemsize = bucket.numel, bucket.dtype.itemsize
        self._moves = doubling_moves(transport.size, transport.rank)
        self._outgoing, self._landing = torch.empty(
            2, bucket.num_bytes, dtype=torch.uint8, device=bucket.device
        ).unbind()
        self.bytes_sent = num_bytes
        if capacity(self._numel, self._itemsize, 1) is None:  # nobody selects anything: all is sent
            self.delivery = "rounded"

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`. Nothing is random."""
        mean.copy_(bucket)
        bucket.zero_()
        if not self._moves or not self._numel:
            return
        contributions = 1
        self._select(mean, bucket, contributions, holders=1)
        for move in self._moves:
            self._swap(move, mean)
            if move.received and not move.replaces:
                contributions += move.received
                self._select(mean, bucket, contributions, holders=move.holders)
        mean.div_(self._transport.size)

    def _select(self, total: Tensor, leftover: Tensor, contributions: int, *, holders: int) -> None:
        """Makes the message of a sum, and leaves in the sum what the message carries, unless both are dense."""
        count = self._capacity(self._numel, self._itemsize, contributions)
        if count is None:
            return
        message = self._outgoing[: self._bytes(contributions)]
        take_largest(total, count, message)
        leftover.add_(total, alpha=share_of_loss(makers=holders))
        add_message(message, count, total.zero_())

    def _swap(self, move: Move, total: Tensor) -> None:
        transport, works = self._transport, []
        landing = self._landing[: self._bytes(move.received)]
        if move.received:
            works.append(transport.irecv(landing, move.peer, self._tag))
        if move.sent:
            works.append(transport.isend(self._message(move.sent, total), move.peer, self._tag))
        for work in works:
            work.wait()
        if move.replaces:
            total.zero_()
        if move.received:
            self._add(landing, move.received, total)

    def _message(self, contributions: int, total: Tensor) -> Tensor:
        if self._capacity(self._numel, self._itemsize, contributions) is None:
            return total.view(torch.uint8)
        return self._outgoing[: self._bytes(contributions)]

    def _add(self, message: Tensor, contributions: int, total: Tensor) -> None:
        count = self._capacity(self._numel, self._itemsize, contributions)
        if count is None:
            total.add_(message.view(total.dtype))
        else:
            add_message(message, count, total)

    def _bytes(self, contributions: int) -> int:
        if contributions == 0:
            return 0
        count = self._capacity(self._numel, self._itemsize, contributions)
        return self._numel * self._itemsize if count is None else count * (INDEX_BYTES + self._itemsize)
