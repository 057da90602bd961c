"""Clusters of levels: groups of workers inside groups, each level with a rate of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire import files
from tightwire.cluster.graph import Link, LinkGraph
from tightwire.cluster.limits import MAX_LATENCY_S, MAX_WORKERS, require_bandwidth, require_range
from tightwire.errors import FileError


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


def require_nested(levels: Sequence[Level], workers: int) -> None:
    """Makes sure that every level holds whole groups of the one inside it, and the outermost all workers.

    Raises:
        FileError: it does not, with both numbers.
    """
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


def nested(levels: Sequence[Level], lines_bytes_per_s: Sequence[float] = ()) -> LinkGraph:
    """Returns the graph in which every group has a switch, linked to that of the group around it.

    Args:
        levels: from the inside out.
        lines_bytes_per_s: of every worker, where they are not as the innermost level says.
    """
    total = levels[-1].workers
    members, size = tuple(f"worker{rank}" for rank in range(total)), 1
    workers, links = members, []
    for level in levels:
        own = lines_bytes_per_s if size == 1 else ()
        joined = level.workers // size
        groups = tuple(f"{level.name}{group}" for group in range(total // level.workers))
        links += [
            Link(
                ends=(member, groups[i // joined]),
                bandwidth_bytes_per_s=own[i] if own else level.bandwidth_bytes_per_s,
                latency_s=level.latency_s / 2,
            )
            for i, member in enumerate(members)
        ]
        members, size = groups, level.workers
    return LinkGraph(workers, tuple(links))
