"""Merging gradients where it pays: the optimal buckets from measured backward times and α–β."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tightwire.errors import PlanError
from tightwire.schedule.scheduler import (
    Agenda,
    BucketFacts,
    Partition,
    Schedule,
    TensorFacts,
    Wire,
    each,
    whole,
)


@dataclass(frozen=True)
class MgWfbp(Schedule):
    """Merges gradients so that the last transfer ends as early as it can (MG-WFBP).

    The papers merge gradient l into l − 1 where l − 1 becomes ready before l's transfer would end, or less than α after
    it would start: τ[l] = max(τ[l+1] + t[l+1], ready[l]). Under the same model this finds the best of *all*
    ways to merge neighbours, by dynamic programming over where the last bucket begins:
    end[j] = min over i < j of max(end[i], ready[j]) + α + β·bytes(i..j). Tensors of each kind are merged by themselves.

    The first rounds are watched tensor by tensor to measure ready times, α and β; then rank 0's measurements decide
    for all ranks. Where nothing is measured, as in planning without a cluster, tensors stay alone.
    """

    name: ClassVar[str] = "mgwfbp"
    title: ClassVar[str] = "optimal merging from measured times"
    paper: ClassVar[str] = "Shi et al., MG-WFBP, arXiv:1811.11141 and arXiv:1912.09268 (algorithm 1)"
    promise: ClassVar[str] = (
        "The best merging there is, by measured times: never slower than wfbp or one exchange (Shi et al. "
        "2019)."
    )
    seen: ClassVar[str] = "results/seven_methods.md tells."
    measures: ClassVar[bool] = True

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        return each(tensors) if wire is None else merge_by_kind(tensors, wire)


@dataclass(frozen=True)
class AscWfbp(Schedule):
    """Merges as MG-WFBP, and moves several buckets at a time, whose latencies then overlap (ASC-WFBP).

    Simultaneous transfers share the line, so k of them cost α/k + β·bytes each in a steady flow; merging is optimal
    under that model.

    Args:
        transfers: at a time, each over connections of its own.
    """

    name: ClassVar[str] = "ascwfbp"
    title: ClassVar[str] = "merging, and several transfers at a time"
    paper: ClassVar[str] = (
        "Shi et al., Exploiting Simultaneous Communications to Accelerate Data Parallel Distributed Deep Learning, "
        "INFOCOM 2021"
    )
    promise: ClassVar[str] = "Several transfers at a time fill the line better than one (Shi et al. 2021)."
    seen: ClassVar[str] = "`tightwire bench step` tells on a given machine."
    measures: ClassVar[bool] = True

    transfers: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.transfers <= 8:
            raise PlanError(f"ascwfbp:{self.transfers}: write 1 to 8 transfers at a time, such as ascwfbp:2.")

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        if wire is None:
            return each(tensors)
        shared = Wire(latency_s=wire.latency_s / self.transfers, bytes_per_s=wire.bytes_per_s)
        return merge_by_kind(tensors, shared)

    def agenda(self, buckets: Sequence[BucketFacts], wire: Wire | None = None) -> Agenda:  # noqa: D102
        return Agenda(pieces=whole(buckets), lanes=self.transfers)


def merge_by_kind(tensors: Sequence[TensorFacts], wire: Wire) -> Partition:
    """Merges the tensors of each kind optimally; buckets in the order in which they become ready."""
    of_kind: dict[Hashable, list[int]] = defaultdict(list)
    for position, tensor in enumerate(tensors):
        of_kind[tensor.kind].append(position)
    buckets = [
        tuple(positions[i] for i in range(start, stop))
        for positions in of_kind.values()
        for start, stop in merge([tensors[p] for p in positions], wire)
    ]
    return tuple(sorted(buckets, key=lambda bucket: bucket[-1]))


def merge(tensors: Sequence[TensorFacts], wire: Wire) -> list[tuple[int, int]]:
    """Returns the runs (start, stop) of neighbours whose transfers, one after another, end earliest.

    Among equals, the fewest transfers.
    """
    count = len(tensors)
    # What is before each place: bytes, when the best of its transfers ends, how many they are.
    before = np.cumsum([0, *(tensor.num_bytes for tensor in tensors)], dtype=np.float64)
    ends_s, transfers = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    starts = [0]
    ready_s = 0.0
    for stop in range(1, count + 1):
        ready_s = max(ready_s, tensors[stop - 1].ready_s)
        moving_s = wire.latency_s + (before[stop] - before[:stop]) / wire.bytes_per_s
        end_s = np.maximum(ends_s[:stop], ready_s) + moving_s
        earliest = np.flatnonzero(end_s == end_s.min())
        start = int(earliest[np.argmin(transfers[earliest])])
        ends_s[stop], transfers[stop] = end_s[start], transfers[start] + 1
        starts.append(start)
    runs, stop = [], len(tensors)
    while stop:
        runs.append((starts[stop], stop))
        stop = starts[stop]
    return runs[::-1]
