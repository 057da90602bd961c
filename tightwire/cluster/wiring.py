"""A cluster's links and routes, as programs that are made for them need them."""

from __future__ import annotations

from functools import lru_cache

from tightwire.architecture.allreduce.builders.synthesis import Wiring
from tightwire.cluster.graph import LinkGraph
from tightwire.cluster.values import Cluster
from tightwire.errors import FileError

# Above, n² routes are too many.
MAX_WIRED = 1024


def wiring_up_to_scale(cluster: Cluster) -> Wiring:
    """Returns the links and routes for which a program of this cluster is made.

    A program depends on how links compare with each other, and not on how fast all of them are: clusters that differ in
    that alone, as in what-ifs over bandwidth, get the links of the first of them, and so the same program.

    Raises:
        FileError: too many workers.
    """
    wiring = wiring_of(cluster)
    most = max(wiring.rates)
    like = _like(tuple(round(rate / most, 9) for rate in wiring.rates), wiring.routes)
    if not like:
        like.append(wiring)
    return like[0]


@lru_cache(maxsize=64)
def _like(relative: tuple[float, ...], routes: tuple[tuple[int, ...], ...]) -> list[Wiring]:
    """Returns where the first wiring of these proportions is kept."""
    return []


def wiring_of(cluster: Cluster) -> Wiring:
    """Returns the links and routes of a cluster; equal lines to one switch where it has no links of its own.

    >>> wiring_of(Cluster.uniform(3, 1e9, 0.0)).route(0, 2)
    (0, 5)

    Raises:
        FileError: too many workers.
    """
    if cluster.workers > MAX_WIRED:
        raise FileError(
            f"{cluster.workers} workers have {cluster.workers**2:,} routes, too many to make a program for; "
            f"{MAX_WIRED} workers at most."
        )
    if cluster.links is None:
        return Wiring.star([cluster.bandwidth_bytes_per_s] * cluster.workers)
    return _of_graph(cluster.links)


@lru_cache(maxsize=16)
def _of_graph(graph: LinkGraph) -> Wiring:
    n = len(graph.workers)
    routes = tuple(graph.route(src, dst) if src != dst else () for src in range(n) for dst in range(n))
    return Wiring(tuple(direction.bandwidth_bytes_per_s for direction in graph.directions), routes)
