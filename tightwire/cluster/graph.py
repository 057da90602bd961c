"""A cluster's links as a graph: who is joined to whom, how fast in each direction, and by which way bytes go."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from tightwire import files
from tightwire.cluster.limits import MAX_LATENCY_S, require_bandwidth, require_range
from tightwire.errors import FileError


@dataclass(frozen=True, kw_only=True)
class Link:
    """A cable, full duplex.

    Attributes:
        ends: names of what it joins: workers or switches.
        bandwidth_bytes_per_s: payload from the first end to the second.
        back_bytes_per_s: payload from the second end to the first; as much as the other way if not given.
        latency_s: that it adds to a message.
        charged: whether what goes over it is paid for by the gigabyte, as between zones, regions or sites.
    """

    __pydantic_config__: ClassVar = files.STRICT

    ends: tuple[str, str]
    bandwidth_bytes_per_s: float
    back_bytes_per_s: float | None = None
    latency_s: float = 0.0
    charged: bool = False

    def __post_init__(self) -> None:
        require_bandwidth(f"links: {'–'.join(self.ends)}: bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        if self.back_bytes_per_s is not None:
            require_bandwidth(f"links: {'–'.join(self.ends)}: back_bytes_per_s", self.back_bytes_per_s)
        require_range(f"links: {'–'.join(self.ends)}: latency_s", self.latency_s, 0.0, MAX_LATENCY_S)
        if self.ends[0] == self.ends[1]:
            raise FileError(f"links: {self.ends[0]} is linked to itself; a link joins two different ends.")


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One direction of a link: what flows compete for."""

    src: str
    dst: str
    bandwidth_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class LinkGraph:
    """Workers, switches and the links between them.

    Attributes:
        workers: names of the ends that train; rank r is the r-th.
        links: between workers and switches, of any names.

    Raises:
        FileError: a worker that is not linked, or workers that cannot reach each other, named.
    """

    __pydantic_config__: ClassVar = files.STRICT

    workers: tuple[str, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        if not self.workers or len(set(self.workers)) < len(self.workers):
            raise FileError("graph: workers must be one or more different names.")
        if len(self.workers) > 1:
            reached = set(self._distances(self.workers[0]))
            if missing := [worker for worker in self.workers if worker not in reached]:
                raise FileError(
                    f"graph: {len(missing)} workers, {missing[0]} among them, cannot be reached from "
                    f"{self.workers[0]}: the cluster is disconnected; add the link that joins them."
                )

    @cached_property
    def directions(self) -> tuple[Direction, ...]:
        """Both directions of every link; routes are indices into it."""
        return tuple(self._directions())

    def route(self, src: int, dst: int) -> tuple[int, ...]:
        """Returns the directions by which bytes go from rank `src` to rank `dst`: a shortest way.

        Of several shortest ways each pair of ranks always takes the same one, and pairs spread over them, as
        equal-cost multipath does.
        """
        if (src, dst) not in self._routes:
            self._routes[src, dst] = self._find_route(src, dst)
        return self._routes[src, dst]

    def latency_s(self, src: int, dst: int) -> float:
        """Returns the latency of the route between two ranks."""
        return sum(self.directions[i].latency_s for i in self.route(src, dst))

    @cached_property
    def zones(self) -> tuple[int, ...]:
        """The zone of every worker: those that reach each other without a charged link share one."""
        free = [link.ends for link in self.links if not link.charged]
        zone = {end: place for place, end in enumerate(dict.fromkeys(itertools.chain(self.workers, *free)))}
        changed = True
        while changed:
            changed = False
            for a, b in free:
                if zone[a] != zone[b]:
                    zone[a] = zone[b] = min(zone[a], zone[b])
                    changed = True
        return tuple(zone[worker] for worker in self.workers)

    def scaled(self, factor: float) -> LinkGraph:
        """Returns this graph with `factor` times the bandwidth of every link."""

        def faster(link: Link) -> Link:
            back = link.back_bytes_per_s
            return dataclasses.replace(
                link,
                bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * factor,
                back_bytes_per_s=None if back is None else back * factor,
            )

        return LinkGraph(self.workers, tuple(map(faster, self.links)))

    def _directions(self) -> Iterator[Direction]:
        for link in self.links:
            there, back = link.bandwidth_bytes_per_s, link.back_bytes_per_s or link.bandwidth_bytes_per_s
            (a, b), latency_s = link.ends, link.latency_s
            yield Direction(src=a, dst=b, bandwidth_bytes_per_s=there, latency_s=latency_s)
            yield Direction(src=b, dst=a, bandwidth_bytes_per_s=back, latency_s=latency_s)

    @cached_property
    def _hash(self) -> int:
        return hash((self.workers, self.links))

    def __hash__(self) -> int:
        """Returns the hash of what it holds, found once: graphs are large, and keys of many caches."""
        return self._hash

    @cached_property
    def _routes(self) -> dict[tuple[int, int], tuple[int, ...]]:
        return {}

    @cached_property
    def _ways(self) -> dict[str, dict[str, list[int]]]:
        return {}

    def _find_route(self, src: int, dst: int) -> tuple[int, ...]:
        end, to = self.workers[src], self.workers[dst]
        if to not in self._ways:
            self._ways[to] = self._ways_to(to)
        ways, way = self._ways[to], list[int]()
        while end != to:
            nearer = ways[end]
            way.append(nearer[_mixed(src, dst) % len(nearer)])
            end = self.directions[way[-1]].dst
        return tuple(way)

    def _ways_to(self, to: str) -> dict[str, list[int]]:
        """Returns the directions that lead from every end one hop nearer to `to`."""
        distances = self._distances(to)
        return {
            end: [i for i in leaving if distances[self.directions[i].dst] == distances[end] - 1]
            for end, leaving in self._out.items()
            if end in distances
        }

    @cached_property
    def _out(self) -> dict[str, tuple[int, ...]]:
        """The directions that leave each end."""
        out: dict[str, list[int]] = {}
        for i, direction in enumerate(self.directions):
            out.setdefault(direction.src, []).append(i)
        return {end: tuple(leaving) for end, leaving in out.items()}

    def _distances(self, to: str) -> dict[str, int]:
        """Returns the hops from every end to `to`; links lead both ways."""
        distances, queue = {to: 0}, deque([to])
        while queue:
            here = queue.popleft()
            for i in self._out.get(here, ()):
                if (there := self.directions[i].dst) not in distances:
                    distances[there] = distances[here] + 1
                    queue.append(there)
        return distances


def _mixed(src: int, dst: int) -> int:
    """Returns a number that is the same for one pair of ranks, and spread evenly over pairs."""
    return (src * 2654435761 ^ dst * 2246822519) >> 8
