"""Who is linked to whom, and how fast: the emulated cluster as a value."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tightwire import units
from tightwire.cluster import PAYLOAD_SHARE, Cluster, Level, Link, LinkGraph
from tightwire.cluster.workers import each_line
from tightwire.errors import LabError, UnitError

MAX_WORKERS = 256
SLOWEST_BYTES_PER_S = 1e3
FASTEST_BYTES_PER_S = 125e9
# Of a message inside a site, by a usual network.
INSIDE_S = 50e-6

_UNLIMITED = ("none", "unlimited")
_EXAMPLES = "1gbit, 200mbit, 50kbit, 25MB/s, or none for links that are not shaped"


def parse_rate(text: str) -> float | None:
    """Reads a link's rate (`units.parse_rate`), or `none` for a link that is not shaped.

    >>> parse_rate("200mbit"), parse_rate("25MB/s"), parse_rate("none")
    (25000000.0, 25000000.0, None)

    Args:
        text: a rate, `none` or `unlimited`.

    Returns:
        Bytes per second on the wire, frame headers included; None for a link that is not shaped.

    Raises:
        LabError: No number, an unknown unit, zero, negative, or a rate that no link has.
    """
    text = text.strip()
    if text.lower() in _UNLIMITED:
        return None
    try:
        rate_bytes_per_s = units.parse_rate(text)
    except UnitError as error:
        raise LabError(str(error)) from None
    return checked_rate(rate_bytes_per_s, f"rate {text!r}")


def checked_rate(rate_bytes_per_s: float, name: str) -> float:
    """Returns the rate itself when a link can have it.

    Raises:
        LabError: It is not between 8 kbit/s and 1 Tbit/s.
    """
    if SLOWEST_BYTES_PER_S <= rate_bytes_per_s <= FASTEST_BYTES_PER_S:
        return rate_bytes_per_s
    raise LabError(
        f"{name} is {rate_bytes_per_s:g} bytes per second, and a link can have 8 kbit/s to 1 Tbit/s. "
        f"Write for example {_EXAMPLES}."
    )


def format_rate(rate_bytes_per_s: float | None) -> str:
    """Writes a rate as `parse_rate` reads it.

    >>> format_rate(25e6), format_rate(None)
    ('200mbit', 'unlimited')
    """
    if rate_bytes_per_s is None:
        return _UNLIMITED[1]
    return units.print_exact_rate(rate_bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Workers and the links between them.

    A star joins every worker to one switch. With `nodes`, the workers of one node share a switch, and the
    node's uplink joins that switch to the others. With `sites` as well, the nodes of one site share a switch of
    their own, and the site's uplink joins that to the other sites.

    Attributes:
        workers: how many there are.
        rate_bytes_per_s: what a worker's own link carries each way; None: not shaped.
        nodes: how many nodes share the workers evenly; None: a star.
        across_bytes_per_s: what a node's uplink carries each way; None: not shaped.
        sites: how many sites share the nodes evenly; None: all are on one.
        between_bytes_per_s: what a site's uplink carries each way; None: not shaped.
        lines_bytes_per_s: of a star whose workers have different links, each worker's.
        across_lines_bytes_per_s: of two nodes joined by several lines, each line's; a pair of workers always takes the
            same one, the one that `graph` routes it by.
        rails: whether every worker has a second link, to a switch that joins equal places of all nodes, as fast as
            an uplink; workers of different nodes and places talk over the uplinks.

    Raises:
        LabError: No workers, too many, workers that do not divide by nodes or nodes by sites, or a rate that no
            link has.
    """

    workers: int
    rate_bytes_per_s: float | None = None
    nodes: int | None = None
    across_bytes_per_s: float | None = None
    sites: int | None = None
    between_bytes_per_s: float | None = None
    lines_bytes_per_s: tuple[float, ...] = ()
    across_lines_bytes_per_s: tuple[float, ...] = ()
    rails: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MAX_WORKERS:
            raise LabError(f"{self.workers} workers were asked for; one machine can hold 1 to {MAX_WORKERS}.")
        if self.nodes is not None and (self.nodes < 1 or self.workers % self.nodes):
            raise LabError(f"{self.workers} workers cannot be shared evenly by {self.nodes} nodes.")
        if self.nodes is None and self.across_bytes_per_s is not None:
            raise LabError("across_bytes_per_s is the rate of a node's uplink, and a star has no nodes.")
        if self.sites is not None and (self.nodes is None or self.sites < 1 or self.nodes % self.sites):
            raise LabError(f"{self.nodes or 'no'} nodes cannot be shared evenly by {self.sites} sites.")
        if self.sites is None and self.between_bytes_per_s is not None:
            raise LabError("between_bytes_per_s is the rate of a site's uplink, and there are no sites.")
        if self.lines_bytes_per_s and (self.nodes or len(self.lines_bytes_per_s) != self.workers):
            raise LabError(
                f"lines: {len(self.lines_bytes_per_s)} links of a star of {self.workers} workers; write one each."
            )
        if self.across_lines_bytes_per_s and (self.nodes != 2 or self.sites or self.rails):
            raise LabError("across: several lines join two nodes, and no more; write for example nodes=2x2.")
        if self.rails and (self.nodes is None or self.sites or self.across_bytes_per_s is None):
            raise LabError(
                "rails join nodes at a rate; write for example rails=2x2,inside=1gbit,across=1gbit."
            )
        for rate in (*self.lines_bytes_per_s, *self.across_lines_bytes_per_s):
            checked_rate(rate, "a line's rate")
        for name in ("rate_bytes_per_s", "across_bytes_per_s", "between_bytes_per_s"):
            if (rate := vars(self)[name]) is not None:
                checked_rate(rate, name)

    @classmethod
    def parse(cls, text: str, workers: int | None = None, rate_bytes_per_s: float | None = None) -> Topology:
        """Reads `star`, or `nodes=2x2,inside=2gbit,across=100mbit` (2 nodes of 2 workers each), or with sites.

        Also `lines=1gbit+250mbit+1gbit`, a star whose workers have different links; several lines between two nodes,
        `nodes=2x2,inside=1gbit,across=100mbit+25mbit`; and `rails=2x2,inside=1gbit,across=1gbit`.

        >>> Topology.parse("sites=2x2x1,across=1gbit,between=50mbit").nodes
        4

        Args:
            text: the topology; `sites=2x2x1` stands for 2 sites of 2 nodes of 1 worker.
            workers: how many; needed by a star, and for nodes optional, but then it must agree.
            rate_bytes_per_s: a worker's link where the text has no `inside`.

        Raises:
            LabError: The text cannot be read, or it contradicts `workers`.
        """
        if text == "star":
            if workers is None:
                raise LabError("a star needs a number of workers. Write for example --workers 4.")
            return cls(workers=workers, rate_bytes_per_s=rate_bytes_per_s)
        if text.startswith("lines="):
            return cls._of_lines(text, workers)
        rails = text.startswith("rails=")
        text = f"nodes={text.removeprefix('rails=')}" if rails else text
        several = re.search(r"across=([^,]*\+[^,]*)", text)
        lines = _read_lines(several[1]) if several else ()
        sides, rates = _read_levels(
            text.replace(several[0], f"across={format_rate(sum(lines))}") if several else text
        )
        total = math.prod(sides)
        if workers not in (None, total):
            raise LabError(f"topology {text!r} has {total} workers, and {workers} were asked for.")
        return cls(
            workers=total,
            rate_bytes_per_s=rates.get("inside", rate_bytes_per_s),
            nodes=math.prod(sides[:-1]),
            across_bytes_per_s=rates.get("across"),
            sites=sides[0] if len(sides) == 3 else None,
            between_bytes_per_s=rates.get("between"),
            across_lines_bytes_per_s=lines,
            rails=rails,
        )

    @classmethod
    def _of_lines(cls, text: str, workers: int | None) -> Topology:
        lines = _read_lines(text.removeprefix("lines="))
        if workers not in (None, len(lines)):
            raise LabError(f"topology {text!r} has {len(lines)} workers, and {workers} were asked for.")
        return cls._of_rates(lines)

    @classmethod
    def _of_rates(cls, lines: tuple[float, ...]) -> Topology:
        return cls(workers=len(lines), rate_bytes_per_s=max(lines), lines_bytes_per_s=lines)

    def __str__(self) -> str:
        if self.lines_bytes_per_s:
            return "lines=" + "+".join(map(format_rate, self.lines_bytes_per_s))
        if self.nodes is None:
            return "star"
        inside, across = format_rate(self.rate_bytes_per_s), format_rate(self.across_bytes_per_s)
        if self.across_lines_bytes_per_s:
            across = "+".join(map(format_rate, self.across_lines_bytes_per_s))
        if self.sites is None:
            kind = "rails" if self.rails else "nodes"
            return f"{kind}={self.nodes}x{self.workers_per_node},inside={inside},across={across}"
        shape = f"{self.sites}x{self.nodes // self.sites}x{self.workers_per_node}"
        between = format_rate(self.between_bytes_per_s)
        return f"sites={shape},inside={inside},across={across},between={between}"

    def cluster(self, latency_s: float = 0.0) -> Cluster:
        """Returns this topology as the planner knows clusters: payload rates, one level per kind of switch.

        Args:
            latency_s: of a small message between two workers whose way crosses all levels. All levels add the same;
                where there are sites, those inside one no more than a usual network does: the rest is between sites.

        Raises:
            LabError: a link that is not shaped, of which no rate is known.
        """
        if self.is_uneven:
            return Cluster.of_graph(self.graph(latency_s))
        sizes = [(self.workers_per_node, "node", self.rate_bytes_per_s)]
        if self.nodes is not None:
            sizes.append(
                (
                    self.workers // (self.sites or 1),
                    "site" if self.sites else "cluster",
                    self.across_bytes_per_s,
                )
            )
        if self.sites is not None:
            sizes.append((self.workers, "cluster", self.between_bytes_per_s))
        if self.nodes is None:
            sizes = [(self.workers, "cluster", self.rate_bytes_per_s)]
        each_s = latency_s / len(sizes)
        if self.sites is not None:
            each_s = min(each_s, INSIDE_S / (len(sizes) - 1))
        levels: list[Level] = []
        for workers, name, rate in sizes:
            if rate is None:
                raise LabError(
                    f"topology {self}: the links of a {name} have no rate, and nothing can be predicted of them; "
                    "write all of them, as in nodes=2x4,inside=100gbit,across=10gbit."
                )
            if levels and levels[-1].workers == workers:
                continue  # one group of one kind: the level around it joins nothing
            levels.append(
                Level(
                    name=name,
                    workers=workers,
                    bandwidth_bytes_per_s=rate * PAYLOAD_SHARE,
                    latency_s=each_s if workers < self.workers else latency_s - each_s * len(levels),
                )
            )
        if len(levels) == 1:
            return Cluster.uniform(self.workers, levels[0].bandwidth_bytes_per_s, latency_s)
        return Cluster.of_levels(*levels)

    @classmethod
    def of_cluster(cls, cluster: Cluster, scale: float = 1.0) -> Topology:
        """Returns a topology that emulates a cluster, all rates times `scale`.

        Raises:
            LabError: a cluster whose links are given one by one, of more than three levels, or of levels whose workers
                have lines of their own.
        """
        rates = [level.bandwidth_bytes_per_s * scale / PAYLOAD_SHARE for level in cluster.levels]
        if cluster.graph is not None or len(rates) > len(_LEVELS) + 1:
            raise LabError(
                "the lab emulates stars, nodes and sites; this cluster is a graph, or has more levels than that."
            )
        if cluster.has_own_lines:
            if len(rates) > 1:
                raise LabError(
                    "the lab emulates lines of workers' own in a star, and this cluster has levels besides: leave "
                    "bandwidth_bytes_per_s out of its kinds, or its levels."
                )
            lines = each_line(cluster.kinds, cluster.inner_bytes_per_s)
            return cls._of_rates(tuple(line * scale / PAYLOAD_SHARE for line in lines))
        if len(rates) < 2:
            rate = rates[0] if rates else cluster.bandwidth_bytes_per_s * scale / PAYLOAD_SHARE
            return cls(workers=cluster.workers, rate_bytes_per_s=rate)
        sizes = [level.workers for level in cluster.levels]
        return cls(
            workers=cluster.workers,
            rate_bytes_per_s=rates[0],
            nodes=cluster.workers // sizes[0],
            across_bytes_per_s=rates[1],
            sites=cluster.workers // sizes[1] if len(sizes) == 3 else None,
            between_bytes_per_s=rates[2] if len(sizes) == 3 else None,
        )

    def line_bytes_per_s(self, rank: int) -> float | None:
        """What the worker's own link carries each way; None: not shaped."""
        return self.lines_bytes_per_s[rank] if self.lines_bytes_per_s else self.rate_bytes_per_s

    @property
    def is_uneven(self) -> bool:
        """Whether links of one kind differ, or there are more of them than a tree has."""
        return bool(self.lines_bytes_per_s or self.across_lines_bytes_per_s or self.rails)

    def graph(self, latency_s: float = 0.0) -> LinkGraph:
        """Returns the links with their payload rates, headers taken off; links that are not shaped are fast.

        Args:
            latency_s: of a small message between two workers, all of it on their own links.
        """
        names = tuple(f"worker{rank}" for rank in range(self.workers))
        homes = ["core" if self.nodes is None else f"node{self.node(rank)}" for rank in range(self.workers)]
        links = [
            _link(name, home, self.line_bytes_per_s(r), latency_s / 2)
            for r, (name, home) in enumerate(zip(names, homes, strict=True))
        ]
        if self.across_lines_bytes_per_s:
            for line, rate in enumerate(self.across_lines_bytes_per_s):
                links += [_link("node0", f"line{line}", rate), _link(f"line{line}", "node1", rate)]
        elif not self.rails:
            above = [f"site{self.site_of(node)}" if self.sites else "core" for node in range(self.nodes or 0)]
            links += [_link(f"node{node}", name, self.across_bytes_per_s) for node, name in enumerate(above)]
            links += [
                _link(f"site{site}", "core", self.between_bytes_per_s) for site in range(self.sites or 0)
            ]
        else:
            links += [
                _link(name, f"rail{rank % self.workers_per_node}", self.across_bytes_per_s)
                for rank, name in enumerate(names)
            ]
        return LinkGraph(names, tuple(links))

    @property
    def workers_per_node(self) -> int:
        """How many workers share a node: in a star every worker is a node of its own."""
        return self.workers // (self.nodes or self.workers)

    def node(self, rank: int) -> int:
        """The node that the worker belongs to; neighbours in rank share one."""
        return rank // self.workers_per_node

    def site_of(self, node: int) -> int:
        """The site that the node belongs to; neighbours in number share one."""
        return node * (self.sites or 1) // (self.nodes or self.workers)

    def environment(self, rank: int) -> dict[str, str]:
        """What `torchrun` would tell this worker about its place."""
        world = str(self.workers)
        return {
            "RANK": str(rank),
            "WORLD_SIZE": world,
            "LOCAL_RANK": str(rank % self.workers_per_node),
            "LOCAL_WORLD_SIZE": str(self.workers_per_node),
            "GROUP_RANK": str(self.node(rank)),
            "GROUP_WORLD_SIZE": str(self.workers // self.workers_per_node),
            "ROLE_RANK": str(rank),
            "ROLE_WORLD_SIZE": world,
        }


def _link(a: str, b: str, rate_bytes_per_s: float | None, latency_s: float = 0.0) -> Link:
    rate = FASTEST_BYTES_PER_S if rate_bytes_per_s is None else rate_bytes_per_s
    return Link(ends=(a, b), bandwidth_bytes_per_s=PAYLOAD_SHARE * rate, latency_s=latency_s)


def _read_lines(text: str) -> tuple[float, ...]:
    """Reads rates joined by +; each must be shaped.

    >>> _read_lines("1gbit+200mbit")
    (125000000.0, 25000000.0)
    """
    rates = [parse_rate(rate) for rate in text.split("+")]
    if None in rates:
        raise LabError(f"lines {text!r}: every line needs a rate. Write for example 1gbit+250mbit.")
    return tuple(rate for rate in rates if rate is not None)


_LEVELS = {2: ("nodes", {"inside", "across"}), 3: ("sites", {"inside", "across", "between"})}


def _read_levels(text: str) -> tuple[tuple[int, ...], dict[str, float | None]]:
    """Reads the sides of the box of workers, and the rates that the text names."""
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    for num_sides, (name, rates) in _LEVELS.items():
        if re.fullmatch("x".join([r"\d+"] * num_sides), fields.get(name, "")) and not fields.keys() - {
            name,
            *rates,
        }:
            sides = tuple(map(int, fields.pop(name).split("x")))
            return sides, {what: parse_rate(rate) for what, rate in fields.items()}
    raise LabError(
        f"topology {text!r} is neither `star` nor like `nodes=2x2,inside=2gbit,across=100mbit` (2 nodes of 2 "
        "workers; inside: a worker's link; across: a node's uplink) or `sites=2x2x1,across=1gbit,between=50mbit` "
        "(2 sites of 2 nodes of 1 worker; between: a site's uplink), `lines=1gbit+250mbit+1gbit` (a star of different "
        "links), `nodes=2x2,inside=1gbit,across=100mbit+25mbit` (two lines between nodes) or `rails=2x2,…`."
    )
