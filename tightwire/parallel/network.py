"""What groups of ranks take to talk, all groups of a kind at once: the busiest link decides.

A group is every rank whose number differs from the first by a multiple of a stride. On levels of equal groups, what
each link carries has a closed form; on any other graph every route is counted. Both are the flow simulator's time of a
ring (tests hold them to it), so that a layout's traffic is priced like every program's.
"""

from __future__ import annotations

import abc
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tightwire.cluster import Cluster, LinkGraph
from tightwire.errors import PlanError

MAX_ROUTED = 1024


@dataclass(frozen=True)
class RankGroup:
    """Ranks that talk: `size` of them, `stride` apart."""

    size: int
    stride: int = 1


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One level of links.

    Attributes:
        name: of the level.
        workers: in one of its groups.
        bytes_per_s: of the line of each member (a worker in the first tier, a group of the tier below in the others).
        latency_s: that it adds to a collective.
    """

    name: str
    workers: int
    bytes_per_s: float
    latency_s: float


class Network(abc.ABC):
    """Prices what groups send. Bytes are of one rank's whole buffer; times are in seconds."""

    def all_reduce_s(self, num_bytes: float, group: RankGroup) -> float:
        """Returns the time of a ring all-reduce in every group at once."""
        return 2 * self._halves_s(num_bytes, group) + self.latency_s(group)

    def scatter_s(self, num_bytes: float, group: RankGroup) -> float:
        """Returns the time of a reduce-scatter, or of an all-gather, in every group at once."""
        return self._halves_s(num_bytes, group) + self.latency_s(group) / 2

    def all_to_all_s(self, num_bytes: float, group: RankGroup) -> float:
        """Returns the time of an all-to-all in every group: a rank has `num_bytes` for all, its own part included."""
        if group.size == 1:
            return 0.0
        return num_bytes * self.swap_s_per_byte(group) + self.latency_s(group) / 2

    def hop_s(self, num_bytes: float, group: RankGroup) -> float:
        """Returns the time in which every rank sends `num_bytes` to the next of its group."""
        if group.size == 1:
            return 0.0
        return num_bytes * self.ring_s_per_byte(group) + self.latency_s(group) / 2

    def _halves_s(self, num_bytes: float, group: RankGroup) -> float:
        return (group.size - 1) / group.size * num_bytes * self.ring_s_per_byte(group)

    @abc.abstractmethod
    def ring_s_per_byte(self, group: RankGroup) -> float:
        """Returns the seconds per byte when every rank sends to the next of its group."""

    @abc.abstractmethod
    def swap_s_per_byte(self, group: RankGroup) -> float:
        """Returns the seconds per byte of a rank's buffer when every rank sends an equal part to each of its group."""

    @abc.abstractmethod
    def latency_s(self, group: RankGroup) -> float:
        """Returns what an all-reduce of nothing takes."""

    @abc.abstractmethod
    def loads(self, group: RankGroup) -> dict[str, float]:
        """Returns how many ranks' bytes the busiest line of each level carries in a ring, by the level's name."""


@dataclass(frozen=True)
class Tiers(Network):
    """Levels of equal groups, from the inside out."""

    tiers: tuple[Tier, ...]

    def ring_s_per_byte(self, group: RankGroup) -> float:  # noqa: D102
        return max(load / tier.bytes_per_s for tier, load in self._loads(group, 1, _ring_load))

    def swap_s_per_byte(self, group: RankGroup) -> float:  # noqa: D102
        return max(load / tier.bytes_per_s for tier, load in self._loads(group, 1, _swap_load))

    def latency_s(self, group: RankGroup) -> float:  # noqa: D102
        if group.size == 1:
            return 0.0
        span = group.size * group.stride
        return sum(
            tier.latency_s
            for below, tier in zip((1, *(t.workers for t in self.tiers)), self.tiers, strict=False)
            if span > below and group.stride < tier.workers
        )

    def loads(self, group: RankGroup) -> dict[str, float]:  # noqa: D102
        return {tier.name: load for tier, load in self._loads(group, 1, _ring_load)}

    def _loads(self, group: RankGroup, below: int, load: object) -> Iterator[tuple[Tier, float]]:
        assert callable(load)
        for tier in self.tiers:
            yield tier, load(group, below)
            below = tier.workers


def _ring_load(group: RankGroup, members: int) -> float:
    """Returns how many ranks' bytes leave `members` neighbouring ranks when each sends to the next of its group."""
    if group.size * group.stride <= members or group.size == 1:
        return 0.0
    return float(min(members, group.stride))


def _swap_load(group: RankGroup, members: int) -> float:
    """Returns how many ranks' buffers leave `members` neighbouring ranks when each sends a part to all of its group."""
    if group.size * group.stride <= members or group.size == 1:
        return 0.0
    inside = min(group.size, max(1, members // group.stride))
    return members * (group.size - inside) / group.size


@dataclass(frozen=True)
class Links(Network):
    """Any graph: every route counted."""

    graph: LinkGraph

    def ring_s_per_byte(self, group: RankGroup) -> float:  # noqa: D102
        return _seconds_per_byte(self.graph, group, False)

    def swap_s_per_byte(self, group: RankGroup) -> float:  # noqa: D102
        return _seconds_per_byte(self.graph, group, True)

    def latency_s(self, group: RankGroup) -> float:  # noqa: D102
        far = self.graph.latency_s(0, (group.size - 1) * group.stride)
        return 2 * math.ceil(math.log2(group.size)) * far if group.size > 1 else 0.0

    def loads(self, group: RankGroup) -> dict[str, float]:  # noqa: D102
        found: dict[str, float] = {}
        for i, load in _routed(self.graph, group, False).items():
            direction = self.graph.directions[i]
            name = f"{direction.src}–{direction.dst}"
            found[name] = load
        return found


@lru_cache(maxsize=4096)
def _seconds_per_byte(graph: LinkGraph, group: RankGroup, swaps: bool) -> float:
    loads = _routed(graph, group, swaps)
    return max((n / graph.directions[i].bandwidth_bytes_per_s for i, n in loads.items()), default=0.0)


@lru_cache(maxsize=4096)
def _routed(graph: LinkGraph, group: RankGroup, swaps: bool) -> dict[int, float]:
    loads: Counter[int] = Counter()
    for ranks in groups_of(len(graph.workers), group):
        for place, src in enumerate(ranks):
            others = ranks if swaps else [ranks[(place + 1) % len(ranks)]]
            for dst in others:
                if dst != src:
                    share = 1 / len(ranks) if swaps else 1.0
                    for i in graph.route(src, dst):
                        loads[i] += share  # type: ignore[assignment]
    return dict(loads)


def groups_of(workers: int, group: RankGroup) -> list[list[int]]:
    """Returns the ranks of every group of a kind.

    >>> groups_of(8, RankGroup(2, 2))
    [[0, 2], [1, 3], [4, 6], [5, 7]]
    """
    span = group.size * group.stride
    return [
        list(range(first + place, first + span, group.stride))
        for first in range(0, workers, span)
        for place in range(group.stride)
    ]


def network_of(cluster: Cluster) -> Network:
    """Returns what prices groups on a cluster: by its levels, or by its links.

    Raises:
        PlanError: a graph of more workers than routes can be counted for.
    """
    if cluster.graph is not None:
        if cluster.workers > MAX_ROUTED:
            raise PlanError(
                f"a graph of {cluster.workers} workers is too large for every route to be counted; write it as levels, "
                f"or take at most {MAX_ROUTED}."
            )
        return Links(cluster.graph)
    return Tiers(tuple(_tiers(cluster)))


def _tiers(cluster: Cluster) -> Iterator[Tier]:
    if not cluster.levels:
        latency_s = cluster.latency_s * 2 * max(1, math.ceil(math.log2(max(2, cluster.workers))))
        yield Tier(
            name="line",
            workers=cluster.workers,
            bytes_per_s=cluster.bandwidth_bytes_per_s,
            latency_s=latency_s,
        )
        return
    below = 1
    for level in cluster.levels:
        members = level.workers // below
        # Trees between members: up and down once.
        latency_s = 2 * math.ceil(math.log2(max(2, members))) * level.latency_s
        yield Tier(
            name=level.name,
            workers=level.workers,
            bytes_per_s=level.bandwidth_bytes_per_s,
            latency_s=latency_s,
        )
        below = level.workers


def names_of(network: Network, groups: Sequence[RankGroup]) -> tuple[str, ...]:
    """Returns the links that any of the groups loads, busiest kinds last, at most one per level."""
    seen: dict[str, None] = {}
    for group in groups:
        seen.update(dict.fromkeys(name for name, load in network.loads(group).items() if load))
    return tuple(seen)
