"""What a cluster can do, as a value and as a file."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from tightwire import files
from tightwire.cluster.fit import Fit, NcclWire
from tightwire.cluster.graph import Link, LinkGraph
from tightwire.cluster.limits import (
    FASTEST_CARD_BYTES_PER_S,
    MAX_FABRIC_BYTES_PER_S,
    MAX_LATENCY_S,
    MAX_WORKERS,
    require_bandwidth,
    require_plausible,
    require_range,
)
from tightwire.errors import FileError
from tightwire.units import print_rate

# TCP on Ethernet with MTU 1500: 1448 payload bytes in a frame of 1514.
PAYLOAD_SHARE = 1448 / 1514


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What was measured between two workers.

    Attributes:
        workers: the two ranks.
        latency_s: half of a round trip of one byte.
        bandwidth_bytes_per_s: payload, one way.
        both_ways_bytes_per_s: payload in each direction while both send.
    """

    __pydantic_config__: ClassVar = files.STRICT

    workers: tuple[int, int]
    latency_s: float
    bandwidth_bytes_per_s: float
    both_ways_bytes_per_s: float

    def __post_init__(self) -> None:
        require_range("latency_s", self.latency_s, 0.0, MAX_LATENCY_S)
        require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        require_bandwidth("both_ways_bytes_per_s", self.both_ways_bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class Level:
    """Groups of workers that are joined in the same way: a node, a rack, a site, the whole.

    Attributes:
        name: such as `node`.
        workers: in one group; a multiple of the level below's, the outermost level's is the whole cluster's.
        bandwidth_bytes_per_s: payload, each way, between each member (a worker in the innermost level, a group of
            the level below in the others) and the rest of its group.
        latency_s: that crossing this level adds to a message.
    """

    __pydantic_config__: ClassVar = files.STRICT

    name: str
    workers: int
    bandwidth_bytes_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        require_range(f"levels: {self.name}: workers", self.workers, 1, MAX_WORKERS)
        require_bandwidth(f"levels: {self.name}: bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        require_range(f"levels: {self.name}: latency_s", self.latency_s, 0.0, MAX_LATENCY_S)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Workers, each on a line of its own, and how long programs take among them.

    Attributes:
        workers: how many.
        bandwidth_bytes_per_s: payload that each worker's line carries in each direction at once.
        latency_s: of one small message between two workers.
        fits: what was measured, at most one per program.
        pairs: measured pairs of workers, for people to look at.
        levels: from the inside out, where lines are not all alike; or
        graph: every link by itself.
        price_per_worker_hour: what a worker costs, in any currency; 0: nobody told.
        devices: how many there are to train on; no limit if not given.
        device_memory_bytes: of each; no limit if not given.
        nccl: over what NCCL reaches other nodes, for formulas of its all-reduce where nothing was measured.
        notes: what a reader must know: what was guessed, converted or left out, a sentence each.
    """

    __pydantic_config__: ClassVar = files.STRICT

    workers: int
    bandwidth_bytes_per_s: float
    latency_s: float
    fits: tuple[Fit, ...] = ()
    pairs: tuple[Pair, ...] = ()
    levels: tuple[Level, ...] = ()
    graph: LinkGraph | None = None
    devices: int | None = None
    device_memory_bytes: int | None = None
    price_per_worker_hour: float = 0.0
    nccl: NcclWire | None = None
    notes: tuple[str, ...] = ()
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        require_range("workers", self.workers, 1, MAX_WORKERS)
        require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        require_range("latency_s", self.latency_s, 0.0, MAX_LATENCY_S)
        require_range("price_per_worker_hour", self.price_per_worker_hour, 0.0, 1e6)
        names = [fit.program for fit in self.fits]
        if len(set(names)) < len(names):
            raise FileError(f"fits: {names} names a program twice; keep one fit per program.")
        for pair in self.pairs:
            if pair.workers[0] == pair.workers[1] or not all(0 <= w < self.workers for w in pair.workers):
                raise FileError(f"pairs: {pair.workers} are not two different ranks below {self.workers}.")
        self._require_consistent()
        _require_nested(self.levels, self.workers)

    @classmethod
    def of_levels(cls, *levels: Level) -> Cluster:
        """Returns a cluster of levels, from the inside out, of which nothing was measured.

        >>> Cluster.of_levels(Level(name="node", workers=4, bandwidth_bytes_per_s=10e9),
        ...                   Level(name="cluster", workers=8, bandwidth_bytes_per_s=1e9)).bandwidth_bytes_per_s
        1000000000.0
        """
        return cls(
            workers=levels[-1].workers,
            bandwidth_bytes_per_s=min(level.bandwidth_bytes_per_s for level in levels),
            latency_s=sum(level.latency_s for level in levels),
            levels=levels,
        )

    @classmethod
    def of_graph(cls, graph: LinkGraph) -> Cluster:
        """Returns a cluster of links, of which nothing was measured."""
        far = range(
            1, len(graph.workers)
        )  # to rank 0, not from it: routes are searched once for each destination
        return cls(
            workers=len(graph.workers),
            bandwidth_bytes_per_s=min(link.bandwidth_bytes_per_s for link in graph.links),
            latency_s=max((graph.latency_s(rank, 0) for rank in far), default=0.0),
            graph=graph,
        )

    @classmethod
    def uniform(cls, workers: int, bandwidth_bytes_per_s: float, latency_s: float) -> Cluster:
        """Returns a cluster of equal lines of which nothing was measured; formulas stand in.

        >>> Cluster.uniform(4, 125e6, 50e-6).workers
        4
        """
        return cls(workers=workers, bandwidth_bytes_per_s=bandwidth_bytes_per_s, latency_s=latency_s)

    @classmethod
    def read(cls, path: str | pathlib.Path) -> Cluster:
        """Reads a cluster file.

        Raises:
            FileError: unreadable, or a field that is wrong, named.
        """
        cluster = files.read(path, cls)
        try:
            cluster.require_plausible()
        except FileError as error:
            raise FileError(f"{path}: {error}") from None
        return cluster

    def write(self, path: str | pathlib.Path) -> None:
        """Writes the cluster as YAML."""
        files.write(path, self)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know: the notes, and a question where a line is faster than a network card's."""
        rate = self.bandwidth_bytes_per_s
        if self.fits or self.levels or self.graph or rate <= FASTEST_CARD_BYTES_PER_S:
            return self.notes
        return (
            *self.notes,
            f"{print_rate(rate)} for every worker ({rate:g} bytes per second) is what devices of one node have, and no "
            f"network card: if bits were meant, write {rate / 8:g}.",
        )

    def require_plausible(self) -> None:
        """Refuses bandwidths that nothing has, as a file may hold in the wrong unit.

        Raises:
            FileError: names the field.
        """
        require_plausible("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        for pair in self.pairs:
            require_plausible("pairs: bandwidth_bytes_per_s", pair.bandwidth_bytes_per_s)
        for level in self.levels:
            field = f"levels: {level.name}: bandwidth_bytes_per_s"
            require_plausible(field, level.bandwidth_bytes_per_s, MAX_FABRIC_BYTES_PER_S)
        for link in self.graph.links if self.graph else ():
            field = f"links: {'–'.join(link.ends)}: bandwidth_bytes_per_s"
            fastest = max(link.bandwidth_bytes_per_s, link.back_bytes_per_s or 0.0)
            require_plausible(field, fastest, MAX_FABRIC_BYTES_PER_S)

    def fit(self, program: str) -> Fit | None:
        """Returns what was measured of `program`, or None."""
        return next((fit for fit in self.fits if fit.program == program), None)

    @property
    def costs(self) -> dict[str, tuple[float, float]]:
        """What was measured, as all-reduce's `auto` goes by it: α in seconds, β in seconds per byte, by program."""
        return {
            fit.program: (fit.alpha_s, fit.beta_s_per_byte) for fit in self.fits if fit.source == "measured"
        }

    @property
    def workers_per_node(self) -> int:
        """How many workers share the innermost level; 1 where there are no levels."""
        return self.levels[0].workers if len(self.levels) > 1 else 1

    @cached_property
    def links(self) -> LinkGraph | None:
        """The links one by one, where lines are not all alike."""
        return self.graph or (_nested(self.levels) if self.levels else None)

    def scaled(self, factor: float) -> Cluster:
        """Returns this cluster with `factor` times the bandwidth, measured programs sped up alike."""
        return dataclasses.replace(
            self,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s * factor,
            fits=tuple(fit.scaled(factor) for fit in self.fits),
            levels=tuple(
                dataclasses.replace(level, bandwidth_bytes_per_s=level.bandwidth_bytes_per_s * factor)
                for level in self.levels
            ),
            graph=self.graph and self.graph.scaled(factor),
        )

    def _require_consistent(self) -> None:
        if self.devices is not None and self.workers > self.devices:
            raise FileError(
                f"workers: {self.workers} workers on {self.devices} devices; a device trains one worker: ask for at "
                f"most {self.devices}."
            )
        if self.device_memory_bytes is not None:
            require_range("device_memory_bytes", self.device_memory_bytes, 1e6, 1e13)
        if self.levels and self.graph is not None:
            raise FileError("levels, graph: both say how workers are joined; keep one of them.")
        if self.graph is not None and len(self.graph.workers) != self.workers:
            raise FileError(
                f"graph: it joins {len(self.graph.workers)} workers, and workers is {self.workers}; make them equal."
            )


def _require_nested(levels: Sequence[Level], workers: int) -> None:
    for inner, outer in itertools.pairwise(levels):
        if outer.workers % inner.workers or outer.workers <= inner.workers:
            raise FileError(
                f"levels: a {outer.name} of {outer.workers} workers does not hold whole groups of {inner.name} "
                f"({inner.workers} workers); go from the inside out, each a multiple of the one before."
            )
    if levels and levels[-1].workers != workers:
        raise FileError(
            f"levels: the outermost, {levels[-1].name}, holds {levels[-1].workers} workers, and workers is {workers}; "
            "make them equal."
        )


def _nested(levels: Sequence[Level]) -> LinkGraph:
    """Returns the graph in which every group has a switch, linked to that of the group around it."""
    total = levels[-1].workers
    members, size = tuple(f"worker{rank}" for rank in range(total)), 1
    workers, links = members, []
    for level in levels:
        joined = level.workers // size
        groups = tuple(f"{level.name}{group}" for group in range(total // level.workers))
        links += [
            Link(
                ends=(member, groups[i // joined]),
                bandwidth_bytes_per_s=level.bandwidth_bytes_per_s,
                latency_s=level.latency_s / 2,
            )
            for i, member in enumerate(members)
        ]
        members, size = groups, level.workers
    return LinkGraph(workers, tuple(links))
