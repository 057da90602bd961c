"""What a cluster can do, as a value and as a file."""

from __future__ import annotations

import dataclasses
import pathlib
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from tightwire import files
from tightwire.cluster.adding import Adding
from tightwire.cluster.fit import Fit, NcclWire
from tightwire.cluster.graph import LinkGraph
from tightwire.cluster.levels import Level, nested, require_nested
from tightwire.cluster.limits import (
    FASTEST_CARD_BYTES_PER_S,
    MAX_FABRIC_BYTES_PER_S,
    MAX_LATENCY_S,
    MAX_WORKERS,
    require_bandwidth,
    require_plausible,
    require_range,
)
from tightwire.cluster.prices import Prices
from tightwire.cluster.topologies import star_of
from tightwire.cluster.workers import WorkerKind, by_speed, each_line, require_kinds
from tightwire.errors import FileError
from tightwire.units import print_rate
from tightwire.ways import Over

# TCP on Ethernet with MTU 1500: 1448 payload bytes in a frame of 1514.
PAYLOAD_SHARE = 1448 / 1514
# A cluster's bandwidth and its slowest level's differ by so many times at most: one may be measured, the other told.
SAME_RATE = 1.2


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
class Cluster:
    """Workers, each on a line of its own, and how long programs take among them.

    Attributes:
        workers: how many.
        bandwidth_bytes_per_s: payload that each worker's line carries in each direction at once; where there are
            levels, the slowest one's.
        latency_s: of one small message between two workers.
        fits: what was measured, at most one per program.
        pairs: measured pairs of workers, for people to look at.
        levels: from the inside out, where lines are not all alike; or
        graph: every link by itself.
        kinds: of workers, in the order of their ranks, where they are not all alike.
        prices: of workers and of traffic; None: nobody told.
        devices: how many there are to train on; no limit if not given.
        device_memory_bytes: of each; no limit if not given.
        nccl: over what NCCL reaches other nodes, for formulas of its all-reduce where nothing was measured.
        over: how messages leave workers' devices, as in `attach(over=)`; auto: by NCCL. In host memory it says nothing.
        adding: which of its switches add for the workers; None: none does.
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
    kinds: tuple[WorkerKind, ...] = ()
    prices: Prices | None = None
    nccl: NcclWire | None = None
    over: Over = "auto"
    adding: Adding | None = None
    notes: tuple[str, ...] = ()
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        require_range("workers", self.workers, 1, MAX_WORKERS)
        require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        require_range("latency_s", self.latency_s, 0.0, MAX_LATENCY_S)
        names = [fit.program for fit in self.fits]
        if len(set(names)) < len(names):
            raise FileError(f"fits: {names} names a program twice; keep one fit per program.")
        for pair in self.pairs:
            if pair.workers[0] == pair.workers[1] or not all(0 <= w < self.workers for w in pair.workers):
                raise FileError(f"pairs: {pair.workers} are not two different ranks below {self.workers}.")
        self._require_consistent()
        require_nested(self.levels, self.workers)
        require_kinds(self.kinds, self.workers)

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
            cluster.require_one_rate()
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
        for kind in self.kinds:
            field = f"kinds: {kind.name}: bandwidth_bytes_per_s"
            require_plausible(field, kind.bandwidth_bytes_per_s or self.bandwidth_bytes_per_s)
        for level in self.levels:
            field = f"levels: {level.name}: bandwidth_bytes_per_s"
            require_plausible(field, level.bandwidth_bytes_per_s, MAX_FABRIC_BYTES_PER_S)
        for link in self.graph.links if self.graph else ():
            field = f"links: {'–'.join(link.ends)}: bandwidth_bytes_per_s"
            fastest = max(link.bandwidth_bytes_per_s, link.back_bytes_per_s or 0.0)
            require_plausible(field, fastest, MAX_FABRIC_BYTES_PER_S)

    def require_one_rate(self) -> None:
        """Refuses a bandwidth that is another than the slowest level's, as where one of the two was changed by hand.

        Raises:
            FileError: names both.
        """
        here = self.bandwidth_bytes_per_s
        slowest = min((level.bandwidth_bytes_per_s for level in self.levels), default=here)
        if max(here, slowest) > SAME_RATE * min(here, slowest):
            raise FileError(
                f"bandwidth_bytes_per_s: {here:g}, and the slowest of levels carries {slowest:g}: plans would be "
                f"predicted some by one and some by the other; write {slowest:g}, or correct that level."
            )

    def fit(self, program: str) -> Fit | None:
        """Returns what was measured of `program`, or None."""
        return next((fit for fit in self.fits if fit.program == program), None)

    @property
    def costs(self) -> dict[str, tuple[float, float]]:
        """What was measured, as all-reduce's `auto` goes by it: α in seconds, β in seconds per byte, by program."""
        return {
            fit.program: (fit.alpha_s, fit.beta_s_per_byte) for fit in self.fits if fit.source == "measured"
        }

    def by_host(self, host_bytes_per_s: float) -> Cluster:
        """Returns this cluster as messages find it that cross host memory: no NVLink, a device's line to its host."""
        inside = self.levels[:1]
        lines = tuple(
            dataclasses.replace(
                level, bandwidth_bytes_per_s=min(level.bandwidth_bytes_per_s, host_bytes_per_s)
            )
            for level in inside
        )
        return dataclasses.replace(
            self,
            bandwidth_bytes_per_s=min(self.bandwidth_bytes_per_s, host_bytes_per_s),
            levels=lines + self.levels[1:],
            nccl=None,
        )

    @property
    def workers_per_node(self) -> int:
        """How many workers share the innermost level; 1 where there are no levels."""
        return self.levels[0].workers if len(self.levels) > 1 else 1

    @cached_property
    def links(self) -> LinkGraph | None:
        """The links one by one, where lines are not all alike."""
        if self.graph is not None:
            return self.graph
        lines = each_line(self.kinds, self.inner_bytes_per_s) if self.has_own_lines else ()
        if self.levels:
            return nested(self.levels, lines)
        return star_of(lines, latency_s=self.latency_s) if lines else None

    @property
    def has_own_lines(self) -> bool:
        """Whether some workers' lines are not as the cluster's."""
        return any(kind.bandwidth_bytes_per_s is not None for kind in self.kinds)

    @property
    def inner_bytes_per_s(self) -> float:
        """What a worker's own line carries, unless its kind says otherwise."""
        return self.levels[0].bandwidth_bytes_per_s if self.levels else self.bandwidth_bytes_per_s

    @property
    def slowest_bytes_per_s(self) -> float:
        """What the slowest line carries that every byte of a worker may have to pass."""
        own = (kind.bandwidth_bytes_per_s for kind in self.kinds if kind.bandwidth_bytes_per_s is not None)
        return min([self.bandwidth_bytes_per_s, *own])

    @cached_property
    def zones(self) -> tuple[int, ...]:
        """The zone of every rank: what leaves one is paid for, where traffic has a price."""
        if self.graph is not None:
            return self.graph.zones
        size = self.levels[-2].workers if len(self.levels) > 1 else 1
        return tuple(rank // size for rank in range(self.workers))

    @property
    def charges_traffic(self) -> bool:
        """Whether what leaves a zone has a price."""
        return self.prices is not None and self.prices.per_gb_across > 0

    @property
    def price_per_hour(self) -> float:
        """What all workers together cost; 0: nobody told."""
        each = self.prices.per_worker_hour if self.prices else 0.0
        if not self.kinds:
            return self.workers * each
        return sum(
            kind.workers * (each if kind.price_per_hour is None else kind.price_per_hour)
            for kind in self.kinds
        )

    def balanced(self) -> Cluster:
        """Returns this cluster with the batch shared by speed, so that all workers compute for equally long."""
        return dataclasses.replace(self, kinds=by_speed(self.kinds)) if self.kinds else self

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
            kinds=tuple(
                dataclasses.replace(
                    kind,
                    bandwidth_bytes_per_s=kind.bandwidth_bytes_per_s and kind.bandwidth_bytes_per_s * factor,
                )
                for kind in self.kinds
            ),
        )

    def _require_consistent(self) -> None:
        if self.devices is not None and self.workers > self.devices:
            raise FileError(
                f"workers: {self.workers} workers on {self.devices} devices; a device trains one worker: ask for at "
                f"most {self.devices}."
            )
        if self.device_memory_bytes is not None:
            require_range("device_memory_bytes", self.device_memory_bytes, 1e6, 1e13)
        if self.graph is not None and self.has_own_lines:
            raise FileError(
                "kinds, graph: both say what a worker's line carries; keep it in the graph's links."
            )
        if self.charges_traffic and self.graph and len(set(self.graph.zones)) == 1:
            raise FileError(
                "prices: per_gb_across is paid on charged links, and the graph has none that parts workers: write "
                "charged: true on those between zones."
            )
        if self.levels and self.graph is not None:
            raise FileError("levels, graph: both say how workers are joined; keep one of them.")
        if self.graph is not None and len(self.graph.workers) != self.workers:
            raise FileError(
                f"graph: it joins {len(self.graph.workers)} workers, and workers is {self.workers}; make them equal."
            )
