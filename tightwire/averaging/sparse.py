"""Reductions that send the largest elements, and add sparse sums on their way."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.exact import exact_bytes
from tightwire.averaging.butterfly import butterfly
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.compression import TopK
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport

INDEX_BYTES = 4
BOUNDARY_BYTES = 8


@dataclass(frozen=True)
class _Sparse(AveragingMethod):
    """Begins with each worker's k = max(1, ⌈ratio·N⌉) largest magnitudes of the bucket's N elements.

    Attributes:
        ratio: of the elements that a worker selects, in (0, 1].
    """

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise PlanError(
                f"{self.name} cannot keep a share of {self.ratio}: give one in (0, 1], as in {self.name}:0.01."
            )

    def kept(self, numel: int) -> int:
        """Returns k."""
        return TopK(self.ratio).kept(numel)


@dataclass(frozen=True)
class Butterfly(_Sparse):
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
        moves = butterfly(workers, rank)
        return sum(self.message_bytes(numel, itemsize, move.sent) for move in moves)

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the reducer of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._butterfly import ButterflyAverager

        return ButterflyAverager(self, transport, bucket, tag)

    @abc.abstractmethod
    def _entries(self, kept: int, contributions: int) -> int:
        """Returns the most elements that the sum of so many workers is sent as."""


@final
@dataclass(frozen=True)
class GTopK(Butterfly):
    """Keeps the k largest of the workers' sum: at every merge of two sums, the k largest of both are kept.

    Algorithm 3, by recursive doubling instead of a tree and a broadcast: ⌈log₂ n⌉ messages of k elements, half of
    the paper's time. What a merge drops is charged to the workers that made it, in equal shares, so that nothing
    is lost under `+ef` even where the paper's algorithm 4 forgets it.

    Attributes:
        ratio: of the elements that are sent and kept, in (0, 1].
    """

    name: ClassVar[str] = "gtopk"
    title: ClassVar[str] = "global top-k, merged pair by pair"
    paper: ClassVar[str] = "Shi et al. 2019, arXiv:1901.04359"
    example: ClassVar[str] = "gtopk:0.01+ef"

    def _entries(self, kept: int, contributions: int) -> int:
        return kept


@final
@dataclass(frozen=True)
class SparCML(Butterfly):
    """Adds all workers' k largest elements exactly: sparse sums that grow, and turn dense when that is smaller.

    SSAR_Recursive_double of section 5.3.1 with the switch of section 5.1 made on the most elements that a sum can
    have, so that sizes are known before anything is sent; unused places travel as zeros.

    Attributes:
        ratio: of the elements that a worker selects, in (0, 1].
    """

    name: ClassVar[str] = "sparcml"
    title: ClassVar[str] = "exact sum of everybody's top-k"
    paper: ClassVar[str] = "Renggli et al. 2019, arXiv:1802.08021"
    example: ClassVar[str] = "sparcml:0.01+ef"

    def _entries(self, kept: int, contributions: int) -> int:
        return kept * contributions


@final
@dataclass(frozen=True)
class OkTopK(_Sparse):
    """Splits the bucket into n regions of equal load; each region's owner adds, selects again and spreads the result.

    Section 3: regions are cut where the workers' largest elements lie, on average over the workers, in every round
    (the paper: every 64th); a worker sends each owner its ⌈k/n⌉ largest of the region, and an owner the ⌈k/n⌉
    largest of its sum: 2(n−1)⌈k/n⌉ elements each, whatever n. What an owner drops is charged to it. Dense where
    that is smaller.

    Attributes:
        ratio: of the elements that are sent and kept, in (0, 1].
    """

    name: ClassVar[str] = "oktopk"
    title: ClassVar[str] = "top-k over regions of equal load"
    paper: ClassVar[str] = "Li and Hoefler 2022, arXiv:2201.07598"
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
        """Builds the reducer of one bucket; see `AveragingMethod.build`."""
        from tightwire.architecture.allreduce.exact import exact_runner
        from tightwire.averaging._owners import OkTopKAverager

        count = self.capacity(bucket.numel, bucket.dtype.itemsize, transport.size)
        if count is None:
            return exact_runner(transport, bucket.numel, bucket.dtype, tag)
        return OkTopKAverager(self, transport, bucket, tag)
