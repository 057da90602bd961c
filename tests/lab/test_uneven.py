"""Labs whose links differ: how they are written, and the graphs that they stand for."""

import pytest

from tightwire.architecture import AllReduce, Setting, build, check
from tightwire.architecture.allreduce.builders import balanced
from tightwire.architecture.allreduce.part import depths
from tightwire.cluster import Cluster
from tightwire.cluster.wiring import wiring_of
from tightwire.compression import Identity
from tightwire.errors import LabError, PlanError
from tightwire.lab import Lab, Topology
from tightwire.plan import Plan

TEXTS = (
    "lines=1gbit+250mbit+1gbit",
    "nodes=2x3,inside=1gbit,across=200mbit+50mbit",
    "rails=2x2,inside=1gbit,across=1gbit",
)


@pytest.mark.parametrize("text", TEXTS)
def test_uneven_labs_are_read_and_printed(text: str) -> None:
    lab = Topology.parse(text)
    assert lab.is_uneven
    assert str(lab) == text
    assert Topology.parse(str(lab)) == lab
    assert len(lab.graph().workers) == lab.workers


def test_the_shaped_transport_cannot_have_different_links() -> None:
    with pytest.raises(LabError, match="links that differ"), Lab(Topology.parse(TEXTS[0]), mode="shaped"):
        pass


def test_pairs_take_both_lines() -> None:
    graph = Topology.parse(TEXTS[1]).graph()
    used = {graph.directions[i].dst for s in range(3) for d in range(3, 6) for i in graph.route(s, d)}
    assert {"line0", "line1"} <= used


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lines=1gbit+none", "every line needs a rate"),
        ("nodes=3x1,inside=1gbit,across=1gbit+1gbit", "several lines join two nodes"),
        ("rails=2x2,inside=1gbit", "rails join nodes at a rate"),
    ],
)
def test_what_cannot_be_built_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(LabError, match=complaint):
        Topology.parse(text)
    with pytest.raises(LabError, match="has 3 workers, and 4 were asked for"):
        Topology.parse(TEXTS[0], workers=4)


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2), (4, 4), (1, 4)])
@pytest.mark.parametrize("speeds", [(1.0, 1.0), (0.1, 1.0), (1.0, 0.3)])
def test_balanced_collectives_are_right(shape: tuple[int, int], speeds: tuple[float, float]) -> None:
    check(balanced(shape[0] * shape[1], shape, speeds))


def test_dimensions_of_like_speed_are_equally_busy() -> None:
    """2 x 2, a link of its own per dimension: 3/4 of the buffer over each, where the plain order has all over one."""
    wiring = wiring_of(Cluster.of_graph(Topology.parse(TEXTS[2]).graph()))

    def busiest(program: object) -> float:
        transfers, chunks = program.transfers, program.num_chunks  # type: ignore[attr-defined]
        return float(wiring.loads([(t.src, t.dst) for t in transfers]).max()) / chunks

    assert busiest(build("hierarchical", 4, (2, 2))) == pytest.approx(1.0)
    assert busiest(balanced(4, (2, 2))) == pytest.approx(0.75)


def test_balanced_is_written_in_a_plan() -> None:
    plan = Plan.parse("bsp/allreduce:hierarchical,balanced=true")
    assert Plan.parse(str(plan)) == plan
    setting = Setting(num_ranks=4, workers_per_node=2)
    assert plan.architecture.program_for(Identity(), 100, 4, setting).num_chunks == 16
    with pytest.raises(PlanError, match="cannot be balanced"):
        AllReduce("ring", balanced=True)
    with pytest.raises(PlanError, match="cannot travel by balanced parts"):
        Plan.parse("bsp/allreduce:hierarchical,balanced=true/int8+ef")
    with pytest.raises(PlanError, match="nodes of equal size"):
        plan.architecture.program_for(Identity(), 100, 4, Setting(num_ranks=5, workers_per_node=2))


def test_depth_is_the_step_of_a_ring_and_one_for_all_children_of_a_tree() -> None:
    ring = build("ring", 5)
    assert depths(ring) == tuple(t.step for t in ring.transfers)
    assert max(depths(build("synthesised", 5))) == 1
