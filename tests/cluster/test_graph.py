"""Graphs of links: every family joins all workers by shortest ways; what cannot be is refused by name."""

import itertools
from pathlib import Path

import pytest

from tightwire.cluster import Cluster, Level, Link, LinkGraph
from tightwire.cluster import topologies as t
from tightwire.errors import FileError

FAMILIES = {
    "star": t.star(5, bandwidth_bytes_per_s=1e9),
    "tree": t.tree(3, 2, bandwidth_bytes_per_s=1e9, oversubscription=2.0),
    "fat tree": t.fat_tree(3, 2, 2, bandwidth_bytes_per_s=1e9, oversubscription=2.0),
    "nodes": t.nodes(2, 3, inside_bytes_per_s=1e10, across_bytes_per_s=1e9),
    "one node": t.nodes(1, 3, inside_bytes_per_s=1e10, across_bytes_per_s=1e9),
    "rails": t.rail_optimised(3, 2, inside_bytes_per_s=1e10, across_bytes_per_s=1e9),
    "torus": t.torus((3, 4), bandwidth_bytes_per_s=1e9),
    "small torus": t.torus((2, 1), bandwidth_bytes_per_s=1e9),
    "dragonfly": t.dragonfly(3, 2, 2, bandwidth_bytes_per_s=1e9, global_bytes_per_s=1e9),
    "BCube": t.bcube(3, 2, bandwidth_bytes_per_s=1e9),
    "sites": t.sites(
        [2, 3], inside_bytes_per_s=1e9, across_bytes_per_s=1e7, across_latency_s=0.03, latency_s=1e-4
    ),
}


@pytest.mark.parametrize("graph", FAMILIES.values(), ids=FAMILIES)
def test_routes_lead_from_worker_to_worker(graph: LinkGraph) -> None:
    for src, dst in itertools.permutations(range(len(graph.workers)), 2):
        route = [graph.directions[i] for i in graph.route(src, dst)]
        assert route[0].src == graph.workers[src]
        assert route[-1].dst == graph.workers[dst]
        assert all(here.dst == there.src for here, there in itertools.pairwise(route))
        assert len(route) == len(graph.route(dst, src))  # a shortest way, both ways
    assert graph.route(0, 0) == ()


@pytest.mark.parametrize("graph", FAMILIES.values(), ids=FAMILIES)
def test_graphs_survive_their_file(graph: LinkGraph, tmp_path: Path) -> None:
    cluster = Cluster.of_graph(graph)
    cluster.write(tmp_path / "cluster.yaml")
    assert Cluster.read(tmp_path / "cluster.yaml") == cluster


def test_equal_ways_are_shared() -> None:
    graph = t.fat_tree(2, 4, 2, bandwidth_bytes_per_s=1e9)
    spines = {graph.directions[i].dst for src in range(4) for i in graph.route(src, 4 + src)}
    assert {"spine0", "spine1"} <= spines


def test_levels_nest() -> None:
    cluster = Cluster.of_levels(
        Level(name="node", workers=2, bandwidth_bytes_per_s=1e10, latency_s=1e-5),
        Level(name="site", workers=4, bandwidth_bytes_per_s=1e9, latency_s=1e-4),
        Level(name="world", workers=8, bandwidth_bytes_per_s=1e8, latency_s=1e-2),
    )
    links = cluster.links
    assert links is not None
    assert [len(links.route(0, dst)) for dst in (1, 2, 4)] == [2, 4, 6]
    assert links.latency_s(0, 4) == pytest.approx(1e-5 + 1e-4 + 1e-2)
    assert (cluster.workers, cluster.bandwidth_bytes_per_s) == (8, 1e8)
    assert cluster.scaled(2.0).levels[0].bandwidth_bytes_per_s == 2e10


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(
        FileError, match="b among them, cannot be reached from a: the cluster is disconnected"
    ):
        LinkGraph(("a", "b"), (Link(ends=("a", "switch"), bandwidth_bytes_per_s=1e9),))
    with pytest.raises(FileError, match="would never move anything"):
        Link(ends=("a", "b"), bandwidth_bytes_per_s=0.0)
    with pytest.raises(FileError, match="linked to itself"):
        Link(ends=("a", "a"), bandwidth_bytes_per_s=1e9)
    inner = Level(name="node", workers=3, bandwidth_bytes_per_s=1e9)
    outer = Level(name="world", workers=8, bandwidth_bytes_per_s=1e9)
    with pytest.raises(FileError, match="does not hold whole groups of node"):
        Cluster.of_levels(inner, outer)
    with pytest.raises(FileError, match="9 workers on 8 devices"):
        Cluster(workers=9, bandwidth_bytes_per_s=1e9, latency_s=0.0, devices=8)
    with pytest.raises(FileError, match="both say how workers are joined"):
        Cluster(workers=8, bandwidth_bytes_per_s=1e9, latency_s=0.0, levels=(outer,), graph=FAMILIES["star"])
    with pytest.raises(FileError, match="it joins 5 workers, and workers is 4"):
        Cluster(workers=4, bandwidth_bytes_per_s=1e9, latency_s=0.0, graph=FAMILIES["star"])
    with pytest.raises(FileError, match=r"oversubscription is 0\.5"):
        t.tree(2, 2, bandwidth_bytes_per_s=1e9, oversubscription=0.5)
