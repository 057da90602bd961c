"""gTop-k and SparCML at work: sums that travel as their largest elements, or dense."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire import kernels
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.averaging.butterfly import Move, butterfly
from tightwire.buckets import BucketLayout
from tightwire.errors import TensorError
from tightwire.transport import Transport

if TYPE_CHECKING:
    from tightwire.averaging.sparse import Butterfly


def take(x: Tensor, count: int, message: Tensor) -> None:
    """Moves the `count` largest elements from `x` to the message."""
    kernels.of(x).select(x, message, count)


def put(message: Tensor, count: int, out: Tensor) -> None:
    """Adds a message to `out`.

    Raises:
        TensorError: indices that cannot be valid; nothing was applied.
    """
    if not kernels.of(out).scatter(message, out, count, True):
        raise TensorError(
            f"a message of {count} elements does not fit a bucket of {out.numel()}: its indices do not ascend "
            "within it; it was corrupted, or written by another plan; nothing was applied."
        )


@final
class ButterflyAverager:
    """Averages one bucket by recursive doubling of sparse sums; see `GTopK` and `SparCML`.

    The sum lies densely in `mean`, from where its largest elements are taken for each message.
    """

    lossless = False

    def __init__(self, method: Butterfly, transport: Transport, bucket: BucketLayout, tag: int) -> None:
        self._method, self._transport, self._tag = method, transport, tag << TAG_BITS
        self._numel, self._itemsize = bucket.numel, bucket.dtype.itemsize
        self._moves = butterfly(transport.size, transport.rank)
        self._outgoing, self._landing = torch.empty(2, bucket.num_bytes, dtype=torch.uint8).unbind()
        shapes = [slot.shape for slot in bucket.slots]
        self.bytes_sent = method.bytes_sent(shapes, self._itemsize, transport.size, transport.rank)

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

    def keep(self) -> None:
        """Does nothing: a run leaves nothing to remember."""

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing; see `keep`."""
        return {}

    def _select(self, total: Tensor, leftover: Tensor, contributions: int, *, holders: int) -> None:
        """Makes the message of a sum, and leaves in the sum what the message carries, unless both are dense."""
        count = self._method.capacity(self._numel, self._itemsize, contributions)
        if count is None:
            return
        message = self._outgoing[: self._bytes(contributions)]
        take(total, count, message)
        leftover.add_(total, alpha=1 / holders)
        put(message, count, total.zero_())

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
        if self._method.capacity(self._numel, self._itemsize, contributions) is None:
            return total.view(torch.uint8)
        return self._outgoing[: self._bytes(contributions)]

    def _add(self, message: Tensor, contributions: int, total: Tensor) -> None:
        count = self._method.capacity(self._numel, self._itemsize, contributions)
        if count is None:
            total.add_(message.view(total.dtype))
        else:
            put(message, count, total)

    def _bytes(self, contributions: int) -> int:
        return self._method.message_bytes(self._numel, self._itemsize, contributions)
