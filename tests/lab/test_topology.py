from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightwire.cluster import PAYLOAD_SHARE, Cluster, WorkerKind
from tightwire.cluster.presets import preset
from tightwire.errors import LabError
from tightwire.lab import Topology, format_rate, parse_rate


@pytest.mark.parametrize(
    ("text", "rate_bytes_per_s"),
    [
        ("1gbit", 125e6),
        ("200mbit", 25e6),
        ("50kbit", 6250.0),
        ("0.5Gbit", 62.5e6),
        ("25MB/s", 25e6),
        ("80000", 10e3),
        ("1e9", 125e6),
        ("none", None),
        ("Unlimited", None),
    ],
)
def test_rates_are_read(text: str, rate_bytes_per_s: float | None) -> None:
    assert parse_rate(text) == rate_bytes_per_s


@given(st.integers(min_value=1_000, max_value=125_000_000_000))
def test_rates_survive_a_round_trip(rate_bytes_per_s: int) -> None:
    assert parse_rate(format_rate(rate_bytes_per_s)) == pytest.approx(rate_bytes_per_s, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a number"),
        ("fast", "not a number"),
        ("nan", "not a number"),
        ("0", "is 0 bytes"),
        ("0mbit", "is 0 bytes"),
        ("-5mbit", "is -625000 bytes"),
        ("200", "Write for example 1gbit"),
        ("9999gbit", "1 Tbit/s"),
        ("2gbps", "Write 2gbit or 2GB/s"),
        ("5parsec", "unknown unit 'parsec'"),
    ],
)
def test_bad_rates_teach(text: str, says: str) -> None:
    with pytest.raises(LabError, match=says):
        parse_rate(text)


@pytest.mark.parametrize(
    "topology",
    [
        Topology(workers=4, rate_bytes_per_s=25e6),
        Topology(workers=4, rate_bytes_per_s=250e6, nodes=2, across_bytes_per_s=12.5e6),
        Topology(workers=6, nodes=3),
        Topology(workers=8, nodes=4, sites=2, across_bytes_per_s=125e6, between_bytes_per_s=12.5e6),
        Topology(workers=4, rate_bytes_per_s=250e6, nodes=4, sites=2),
    ],
)
def test_topologies_survive_a_round_trip(topology: Topology) -> None:
    assert Topology.parse(str(topology), topology.workers, topology.rate_bytes_per_s) == topology


@pytest.mark.parametrize(
    ("text", "workers", "says"),
    [
        ("star", None, "--workers 4"),
        ("star", 0, "0 workers"),
        ("star", -1, "-1 workers"),
        ("star", 5000, "1 to 256"),
        ("ring", 4, "neither"),
        ("nodes=2x2,uphill=1gbit", 4, "neither"),
        ("nodes=2", 4, "neither"),
        ("nodes=0x2", None, "0 workers"),
        ("nodes=2x2", 3, "has 4 workers, and 3"),
        ("nodes=2x2,across=0mbit", 4, "is 0 bytes"),
        ("sites=2x2", 4, "neither"),
        ("sites=2x2x1,uphill=1gbit", 4, "neither"),
        ("nodes=2x2,between=1gbit", 4, "a site's uplink"),
        ("nodes=2x2,sites=2x2x1", 4, "neither"),
        ("sites=2x2x1", 8, "has 4 workers, and 8"),
        ("sites=0x2x1", None, "0 workers"),
        ("sites=2x2x1,between=0mbit", None, "is 0 bytes"),
        ("sites=2x2x1,between=fast", None, "not a number"),
    ],
)
def test_bad_topologies_teach(text: str, workers: int | None, says: str) -> None:
    with pytest.raises(LabError, match=says):
        Topology.parse(text, workers)


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": 3},
        {"across_bytes_per_s": 1e6},
        {"rate_bytes_per_s": 0.0},
        {"sites": 2},
        {"nodes": 2, "sites": 4},
        {"nodes": 2, "sites": 0},
        {"nodes": 2, "between_bytes_per_s": 1e6},
        {"nodes": 2, "sites": 2, "between_bytes_per_s": 1.0},
    ],
)
def test_contradictions_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(LabError):
        Topology(workers=4, **change)  # type: ignore[arg-type]


def places(topology: Topology) -> list[tuple[int, ...]]:
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "WORLD_SIZE")
    environments = [topology.environment(rank) for rank in range(topology.workers)]
    return [tuple(int(environment[name]) for name in names) for environment in environments]


def test_in_a_star_every_worker_is_a_node() -> None:
    assert places(Topology(workers=2)) == [(0, 0, 1, 0, 2, 2), (1, 0, 1, 1, 2, 2)]


def test_ranks_fill_nodes_in_order() -> None:
    expected = [(0, 0, 2, 0, 2, 4), (1, 1, 2, 0, 2, 4), (2, 0, 2, 1, 2, 4), (3, 1, 2, 1, 2, 4)]
    assert places(Topology(workers=4, nodes=2)) == expected


def test_nodes_fill_sites_in_order() -> None:
    topology = Topology.parse("sites=2x3x2")
    assert [topology.site_of(topology.node(rank)) for rank in range(12)] == [0] * 6 + [1] * 6
    assert places(topology)[7] == (7, 1, 2, 3, 6, 12)


@pytest.mark.parametrize(
    "text",
    ["nodes=2x4,inside=10gbit,across=1gbit", "sites=2x2x2,inside=2gbit,across=1gbit,between=50mbit"],
)
def test_topologies_and_clusters_are_one_language(text: str) -> None:
    topology = Topology.parse(text)
    cluster = topology.cluster(latency_s=1e-4)
    assert cluster.workers == topology.workers
    assert cluster.workers_per_node == topology.workers_per_node
    assert cluster.latency_s == pytest.approx(1e-4)
    assert Topology.of_cluster(cluster).workers_per_node == topology.workers_per_node
    slow = Topology.of_cluster(cluster, 0.1)
    assert slow.across_bytes_per_s == pytest.approx(0.1 * (topology.across_bytes_per_s or 0.0))
    assert (slow.sites, slow.nodes) == (topology.sites, topology.nodes)


def test_the_latency_of_sites_is_between_them() -> None:
    topology = Topology.parse("sites=3x2x4,inside=10gbit,across=1gbit,between=200mbit")
    assert [level.latency_s for level in topology.cluster(0.05).levels] == pytest.approx(
        [25e-6, 25e-6, 0.05 - 50e-6]
    )


def test_a_star_is_a_uniform_cluster_and_links_without_a_rate_are_none() -> None:
    cluster = Topology(workers=4, rate_bytes_per_s=125e6).cluster()
    assert not cluster.levels
    assert Topology.of_cluster(cluster).rate_bytes_per_s == pytest.approx(125e6)
    with pytest.raises(LabError, match="have no rate"):
        Topology.parse("nodes=2x2,inside=1gbit").cluster()


def test_workers_of_a_star_keep_lines_of_their_own() -> None:
    kinds = (
        WorkerKind(name="near", workers=3),
        WorkerKind(name="far", workers=1, bandwidth_bytes_per_s=1e7),
    )
    cluster = dataclasses.replace(Cluster.uniform(4, 1e8, 0.0), kinds=kinds)
    found = Topology.of_cluster(cluster, 0.5)
    payload = [PAYLOAD_SHARE * (found.line_bytes_per_s(rank) or 0.0) for rank in range(4)]
    assert payload == pytest.approx([5e7, 5e7, 5e7, 5e6])
    nodes = preset("aws-g5.12xlarge", 2)
    far = (dataclasses.replace(kinds[0], workers=7), kinds[1])
    with pytest.raises(LabError, match="levels besides"):
        Topology.of_cluster(dataclasses.replace(nodes, kinds=far))
