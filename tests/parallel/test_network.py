"""Groups on levels, on graphs and in the flow simulator: one price."""

import pytest

from tightwire.cluster import Cluster, Level
from tightwire.cluster.topologies import rail_optimised, star
from tightwire.errors import PlanError
from tightwire.parallel.network import Links, RankGroup, Tiers, groups_of, network_of
from tightwire.simulate.flows import step_seconds

CLUSTER = Cluster.of_levels(
    Level(name="node", workers=4, bandwidth_bytes_per_s=8e9),
    Level(name="rack", workers=8, bandwidth_bytes_per_s=6e9),
    Level(name="site", workers=16, bandwidth_bytes_per_s=1e9),
)
GROUPS = [RankGroup(size, stride) for size in (2, 4, 8, 16) for stride in (1, 2, 4, 8) if size * stride <= 16]


@pytest.mark.parametrize("group", GROUPS)
def test_levels_cost_what_their_links_do(group: RankGroup) -> None:
    levels = network_of(CLUSTER)
    assert isinstance(levels, Tiers)
    assert CLUSTER.links is not None
    links = Links(CLUSTER.links)
    assert levels.ring_s_per_byte(group) == pytest.approx(links.ring_s_per_byte(group))
    assert levels.swap_s_per_byte(group) == pytest.approx(links.swap_s_per_byte(group))
    ring = [
        (ranks[i], ranks[(i + 1) % len(ranks)], 1e6)
        for ranks in groups_of(16, group)
        for i in range(len(ranks))
    ]
    assert 1e6 * levels.ring_s_per_byte(group) == pytest.approx(step_seconds(CLUSTER.links, ring))


def test_a_group_of_one_is_free() -> None:
    alone = RankGroup(1, 4)
    for network in (network_of(CLUSTER), network_of(Cluster.of_graph(star(16, bandwidth_bytes_per_s=1e9)))):
        assert network.all_reduce_s(1e6, alone) == network.all_to_all_s(1e6, alone) == 0.0


def test_an_uncontended_ring_is_the_closed_form() -> None:
    network = network_of(Cluster.uniform(8, 1e9, 0.0))
    assert network.all_reduce_s(1e9, RankGroup(8)) == pytest.approx(2 * 7 / 8)
    assert network.scatter_s(1e9, RankGroup(8)) == pytest.approx(7 / 8)


def test_rails_carry_equal_places_of_all_nodes() -> None:
    graph = rail_optimised(4, 4, inside_bytes_per_s=8e9, across_bytes_per_s=1e9)
    assert network_of(Cluster.of_graph(graph)).ring_s_per_byte(RankGroup(4, 4)) == pytest.approx(1e-9)


def test_graphs_too_large_are_refused() -> None:
    with pytest.raises(PlanError, match="write it as levels"):
        network_of(Cluster.of_graph(star(1025, bandwidth_bytes_per_s=1e9)))
