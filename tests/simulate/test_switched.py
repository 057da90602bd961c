"""Predictions for switches that add."""

import dataclasses

import pytest

from tightwire.architecture import AllReduce
from tightwire.catalogue import parse_compression
from tightwire.cluster import Adding, Cluster
from tightwire.cluster.presets import preset
from tightwire.compression import Codec
from tightwire.errors import FileError, PlanError
from tightwire.plan import Plan
from tightwire.planner.candidates import architecture_texts
from tightwire.simulate.collective import Collective, collective_of
from tightwire.simulate.switched import TRIPS

STAR = Cluster.uniform(4, 1e8, 1e-4)


def in_network(workers: int) -> Collective:
    return collective_of(AllReduce("in-network"), "in-network", workers)


def test_a_buffer_goes_up_and_down_once() -> None:
    fit = in_network(4).fit(dataclasses.replace(STAR, adding=Adding()))
    assert (fit.beta_s_per_byte, fit.alpha_s) == (1e-8, TRIPS * 1e-4)
    (int8,) = parse_compression("int8")
    assert isinstance(int8, Codec)
    moved = in_network(4).moved_bytes(int8, 1_000_000, 4)
    assert moved == 2 * in_network(4).sent_bytes(int8, 1_000_000, 4)


def test_slots_bound_what_is_under_way() -> None:
    few = dataclasses.replace(STAR, adding=Adding(slots=1, slot_bytes=10_000))
    assert in_network(4).fit(few).beta_s_per_byte == pytest.approx(2e-4 / 10_000)


def test_levels_that_add_and_levels_that_do_not() -> None:
    one, many = preset("dgx-h100-sharp", 1), preset("dgx-h100-sharp", 16)
    assert in_network(8).fit(one).beta_s_per_byte == pytest.approx((1 + 1 / 8) / 450e9)
    across_bytes_per_s = many.levels[1].bandwidth_bytes_per_s
    slowest = max((1 + 1 / 8) / 450e9, 1 / across_bytes_per_s)
    assert in_network(128).fit(many).beta_s_per_byte == pytest.approx(slowest)
    only_across = dataclasses.replace(many, adding=Adding(levels=("cluster",)))
    assert in_network(128).fit(only_across).beta_s_per_byte == pytest.approx(2 * 7 / 8 / 450e9)


def test_it_is_a_candidate_where_a_switch_adds() -> None:
    assert "allreduce:in-network" in architecture_texts(False, False, True)
    assert "allreduce:in-network" not in architecture_texts(True, True)
    assert Plan.parse("bsp/allreduce:in-network")


def test_clusters_that_cannot_add_say_so() -> None:
    with pytest.raises(PlanError, match="tells of none"):
        in_network(4).fit(STAR)
    with pytest.raises(PlanError, match="is no level"):
        in_network(4).fit(dataclasses.replace(STAR, adding=Adding(levels=("rack",))))
    with pytest.raises(FileError, match="no memory to add in"):
        Adding(slots=0)
