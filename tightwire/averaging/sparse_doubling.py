"""What gTop-k and SparCML share: sparse sums that are added by recursive doubling."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tightwire.averaging._doubling import doubling_moves
from tightwire.averaging.method import Shape
from tightwire.averaging.topk_method import INDEX_BYTES, TopKMethod

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport


@dataclass(frozen=True)
class SparseDoubling(TopKMethod):
    """Adds sums by recursive doubling; a sum travels dense once that is smaller."""

    def capacity(self, numel: int, itemsize: int, contributions: int) -> int | None:
        """Returns how many elements the message of a sum has, or None where it is the dense sum."""
        count = min(numel, self._entries(self.kept(numel), contributions))
        return count if count * (INDEX_BYTES + itemsize) < numel * itemsize else None

    def message_bytes(self, numel: int, itemsize: int, contributions: int) -> int:
        """Returns the size of the message of a sum of so many workers; of none, nothing."""
        if contributions == 0:
            return 0
        count = self.capacity(numel, itemsize, contributions)
        return numel * itemsize if count is None else count * (INDEX_BYTES + itemsize)

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of this rank's sums; see `AveragingMethod.bytes_sent`."""
        numel = sum(map(math.prod, shapes))
        moves = doubling_moves(workers, rank)
        return sum(self.message_bytes(numel, itemsize, move.sent) for move in moves)

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._sparse_doubling import SparseDoublingAverager

        shapes = [slot.shape for slot in bucket.slots]
        num_bytes = self.bytes_sent(shapes, bucket.dtype.itemsize, transport.size, transport.rank)
        return SparseDoublingAverager(transport, bucket, self.capacity, num_bytes=num_bytes, tag=tag)

    @abc.abstractmethod
    def _entries(self, kept: int, contributions: int) -> int:
        """Returns the most elements that the sum of so many workers is sent as."""
