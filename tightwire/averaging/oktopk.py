"""Ok-Topk: top-k over regions of equal load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.exact import exact_bytes
from tightwire.averaging.method import Shape
from tightwire.averaging.topk_method import INDEX_BYTES, TopKMethod

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport


BOUNDARY_BYTES = 8


@final
@dataclass(frozen=True)
class OkTopK(TopKMethod):
    """Splits the bucket into n regions of equal load; each region's owner adds, selects again and spreads the result.

    Section 3: regions are cut where the workers' largest elements lie, on average over the workers, in every round
    (the paper: every 64th); a worker sends each owner its ⌈k/n⌉ largest of the region, and an owner the ⌈k/n⌉
    largest of its sum: 2(n−1)⌈k/n⌉ elements each, whatever n. What an owner drops is charged to it. Dense where
    that is smaller.

    The paper, and the authors' code (github.com/Shigangli/Ok-Topk), send what is above thresholds, which they estimate
    anew every so many rounds (128 in the code), in messages of unlike size; and what an owner drops stays with the
    workers that sent it, which adds up to the same.

    Attributes:
        ratio: of the elements that are sent and kept, in (0, 1].
    """

    name: ClassVar[str] = "oktopk"
    title: ClassVar[str] = "top-k over regions of equal load"
    paper: ClassVar[str] = "Li and Hoefler 2022, arXiv:2201.07598"
    promise: ClassVar[str] = "Top-k's accuracy at less than 6k elements, whatever n (Li and Hoefler 2022)."
    seen: ClassVar[str] = "Not quite: thresholds are kept for rounds, and gradients change faster."
    example: ClassVar[str] = "oktopk:0.01+ef"

    def capacity(self, numel: int, itemsize: int, workers: int) -> int | None:
        """Returns how many elements a message has, or None where the bucket travels dense."""
        count = -(-self.kept(numel) // workers)
        return count if workers * count * (INDEX_BYTES + itemsize) < numel * itemsize else None

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of boundaries, parts and sums; see `AveragingMethod.bytes_sent`."""
        numel = sum(map(math.prod, shapes))
        count = self.capacity(numel, itemsize, workers)
        if count is None:
            return exact_bytes(numel, itemsize, workers, rank)
        pairs = 2 * (workers - 1) * count * (INDEX_BYTES + itemsize)
        return exact_bytes(workers - 1, BOUNDARY_BYTES, workers, rank) + pairs

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.architecture.allreduce.exact import exact_runner
        from tightwire.averaging._oktopk import OkTopKAverager

        itemsize = bucket.dtype.itemsize
        count = self.capacity(bucket.numel, itemsize, transport.size)
        if count is None:
            return exact_runner(transport, bucket.numel, bucket.dtype, tag, bucket.device)
        shapes = [slot.shape for slot in bucket.slots]
        num_bytes = self.bytes_sent(shapes, itemsize, transport.size, transport.rank)
        kept = self.kept(bucket.numel)
        return OkTopKAverager(transport, bucket, kept=kept, count=count, num_bytes=num_bytes, tag=tag)
