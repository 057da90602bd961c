"""Graphs by family: each a function from a few numbers to a `LinkGraph`. Rates are payload, in bytes per second.

Switches forward at full rate; only links limit. Sources: Al-Fares et al. 2008 (fat-tree), Kim et al. 2008 (dragonfly),
Guo et al. 2009 (BCube), Wang et al. 2023, arXiv:2307.12169 (rail-optimised).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from tightwire.cluster.graph import Link, LinkGraph
from tightwire.errors import FileError


def star(workers: int, *, bandwidth_bytes_per_s: float, latency_s: float = 0.0) -> LinkGraph:
    """Joins every worker to one switch. A message crosses two links.

    >>> star(3, bandwidth_bytes_per_s=1e9).route(0, 2)
    (0, 5)
    """
    names = _workers(workers)
    links = (_link(name, "switch", bandwidth_bytes_per_s, latency_s / 2) for name in names)
    return LinkGraph(names, tuple(links))


def star_of(lines_bytes_per_s: Sequence[float], *, latency_s: float = 0.0) -> LinkGraph:
    """Joins workers to one switch, each by a line of its own rate."""
    names = _workers(len(lines_bytes_per_s))
    links = (
        _link(name, "switch", rate, latency_s / 2)
        for name, rate in zip(names, lines_bytes_per_s, strict=True)
    )
    return LinkGraph(names, tuple(links))


def tree(
    racks: int,
    workers_per_rack: int,
    *,
    bandwidth_bytes_per_s: float,
    oversubscription: float = 1.0,
    latency_s: float = 0.0,
) -> LinkGraph:
    """Joins racks of workers to one core switch; a rack's uplink carries its workers' sum over `oversubscription`."""
    _at_least(1.0, oversubscription=oversubscription)
    names = _workers(racks * workers_per_rack)
    up = bandwidth_bytes_per_s * workers_per_rack / oversubscription
    edges = [
        _link(name, f"rack{i // workers_per_rack}", bandwidth_bytes_per_s, latency_s / 2)
        for i, name in enumerate(names)
    ]
    cores = [_link(f"rack{rack}", "core", up, latency_s / 2) for rack in range(racks)]
    return LinkGraph(names, (*edges, *(cores if racks > 1 else ())))


def fat_tree(
    racks: int,
    workers_per_rack: int,
    spines: int,
    *,
    bandwidth_bytes_per_s: float,
    oversubscription: float = 1.0,
    latency_s: float = 0.0,
) -> LinkGraph:
    """Joins racks to several spine switches; pairs of workers spread over the spines (leaf–spine, folded Clos)."""
    _at_least(1.0, oversubscription=oversubscription)
    _at_least(1, spines=spines)
    names = _workers(racks * workers_per_rack)
    up = bandwidth_bytes_per_s * workers_per_rack / oversubscription / spines
    edges = [
        _link(name, f"leaf{i // workers_per_rack}", bandwidth_bytes_per_s, latency_s / 2)
        for i, name in enumerate(names)
    ]
    ups = [
        _link(f"leaf{rack}", f"spine{spine}", up, latency_s / 2)
        for rack in range(racks)
        for spine in range(spines)
    ]
    return LinkGraph(names, (*edges, *ups))


def nodes(
    count: int,
    workers_per_node: int,
    *,
    inside_bytes_per_s: float,
    across_bytes_per_s: float,
    latency_s: float = 0.0,
) -> LinkGraph:
    """Joins the workers of a node to a switch of its own, and nodes by one uplink each: servers of several devices."""
    names = _workers(count * workers_per_node)
    edges = [
        _link(name, f"node{i // workers_per_node}", inside_bytes_per_s, latency_s / 2)
        for i, name in enumerate(names)
    ]
    ups = [
        _link(f"node{node}", "switch", across_bytes_per_s, latency_s / 2, charged=True)
        for node in range(count)
    ]
    return LinkGraph(names, (*edges, *(ups if count > 1 else ())))


def rail_optimised(
    count: int,
    workers_per_node: int,
    *,
    inside_bytes_per_s: float,
    across_bytes_per_s: float,
    spine_oversubscription: float = 1.0,
    latency_s: float = 0.0,
) -> LinkGraph:
    """Gives every device of a node a network card; equal places of all nodes share a rail switch, rails a spine."""
    _at_least(1.0, spine_oversubscription=spine_oversubscription)
    names = _workers(count * workers_per_node)
    place = dict(enumerate(names))
    links: list[Link] = []
    for rank, name in place.items():
        node, rail = divmod(rank, workers_per_node)
        links += [
            _link(name, f"node{node}", inside_bytes_per_s, latency_s / 2),
            _link(name, f"rail{rail}", across_bytes_per_s, latency_s / 2),
        ]
    up = across_bytes_per_s * count / spine_oversubscription
    links += [_link(f"rail{rail}", "spine", up, latency_s / 2) for rail in range(workers_per_node)]
    return LinkGraph(names, tuple(links))


def torus(shape: Sequence[int], *, bandwidth_bytes_per_s: float, latency_s: float = 0.0) -> LinkGraph:
    """Joins workers on a grid to their neighbours along each dimension, ends wrapped around; no switches."""
    _at_least(1, **{f"dimension {i}": size for i, size in enumerate(shape)})
    places = list(itertools.product(*map(range, shape)))
    rank = {place: i for i, place in enumerate(places)}
    pairs = set()
    for place, (axis, size) in itertools.product(places, enumerate(shape)):
        there = (*place[:axis], (place[axis] + 1) % size, *place[axis + 1 :])
        if there != place:
            pairs.add((min(rank[place], rank[there]), max(rank[place], rank[there])))
    names = _workers(len(places))
    links = (_link(names[a], names[b], bandwidth_bytes_per_s, latency_s) for a, b in sorted(pairs))
    return LinkGraph(names, tuple(links))


def dragonfly(
    groups: int,
    routers_per_group: int,
    workers_per_router: int,
    *,
    bandwidth_bytes_per_s: float,
    global_bytes_per_s: float,
    latency_s: float = 0.0,
) -> LinkGraph:
    """Joins the routers of a group all to all, and every two groups by one global link, spread over their routers."""
    routers = [[f"router{g}.{r}" for r in range(routers_per_group)] for g in range(groups)]
    flat = [router for group in routers for router in group]
    names = _workers(len(flat) * workers_per_router)
    links = [
        _link(name, flat[i // workers_per_router], bandwidth_bytes_per_s, latency_s / 2)
        for i, name in enumerate(names)
    ]
    for group in routers:
        links += [
            _link(a, b, bandwidth_bytes_per_s, latency_s / 2) for a, b in itertools.combinations(group, 2)
        ]
    for g, h in itertools.combinations(range(groups), 2):
        a, b = routers[g][(h - 1) % routers_per_group], routers[h][g % routers_per_group]
        links.append(_link(a, b, global_bytes_per_s, latency_s))
    return LinkGraph(names, tuple(links))


def bcube(ports: int, levels: int, *, bandwidth_bytes_per_s: float, latency_s: float = 0.0) -> LinkGraph:
    """Builds BCube: ports^levels workers, each with one link per level to a switch of `ports` ports."""
    _at_least(2, ports=ports)
    _at_least(1, levels=levels)
    names = _workers(ports**levels)
    links = []
    for rank, name in enumerate(names):
        for level in range(levels):
            low, high = rank % ports**level, rank // ports ** (level + 1)
            links.append(_link(name, f"switch{level}.{high}.{low}", bandwidth_bytes_per_s, latency_s / 2))
    return LinkGraph(names, tuple(links))


def sites(
    workers: Sequence[int],
    *,
    inside_bytes_per_s: float,
    across_bytes_per_s: float,
    across_latency_s: float,
    latency_s: float = 0.0,
) -> LinkGraph:
    """Joins sites of workers, each a star, by one long line per site to a common backbone."""
    names = _workers(sum(workers))
    home = [site for site, count in enumerate(workers) for _ in range(count)]
    edges = [
        _link(name, f"site{site}", inside_bytes_per_s, latency_s / 2)
        for name, site in zip(names, home, strict=True)
    ]
    long = [
        _link(f"site{site}", "backbone", across_bytes_per_s, across_latency_s / 2, charged=True)
        for site in range(len(workers))
    ]
    return LinkGraph(names, (*edges, *(long if len(workers) > 1 else ())))


def _workers(count: int) -> tuple[str, ...]:
    _at_least(1, workers=count)
    return tuple(f"worker{i}" for i in range(count))


def _link(a: str, b: str, bandwidth_bytes_per_s: float, latency_s: float, charged: bool = False) -> Link:
    return Link(
        ends=(a, b), bandwidth_bytes_per_s=bandwidth_bytes_per_s, latency_s=latency_s, charged=charged
    )


def _at_least(least: float, **values: float) -> None:
    wrong: Iterable[str] = [f"{name} is {value}" for name, value in values.items() if value < least]
    if complaint := ", ".join(wrong):
        raise FileError(f"topology: {complaint}, and must be at least {least:g}.")
