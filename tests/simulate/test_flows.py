"""Flows: max–min fair, equal to closed forms where nothing contends, slower where something does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightwire import architecture as architectures
from tightwire.cluster import topologies as t
from tightwire.simulate.flows import fair_rates, fit_on, program_seconds, step_seconds

WAYS = st.lists(st.sets(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=6)


@given(WAYS, st.lists(st.floats(1.0, 100.0), min_size=5, max_size=5))
def test_rates_are_max_min_fair(ways: list[set[int]], capacities: list[float]) -> None:
    uses = np.array([[float(link in way) for way in ways] for link in range(5)])
    capacity = np.array(capacities)
    rates = fair_rates(uses, np.ones(len(ways)), capacity)
    load = uses @ rates
    assert (load <= capacity * (1 + 1e-9)).all()
    for flow, way in enumerate(ways):  # each is the fastest on some full link of its way
        bottlenecks = [link for link in way if load[link] >= capacity[link] * (1 - 1e-9)]
        assert any((rates[uses[link] > 0] <= rates[flow] * (1 + 1e-9)).all() for link in bottlenecks)


@pytest.mark.parametrize("workers", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("name", sorted(architectures.PROGRAMS))
def test_uncontended_programs_take_their_closed_form(name: str, workers: int) -> None:
    program = architectures.build(name, workers)
    graph = t.star(workers, bandwidth_bytes_per_s=1e8, latency_s=1e-4)
    chunks = [10_000 + 8 * chunk for chunk in range(program.num_chunks)]
    expected_s = program.seconds(chunks, 1e-4, 1e8)
    assert program_seconds(program, graph, chunks) == pytest.approx(expected_s, rel=1e-9)


def test_what_shares_a_link_takes_longer() -> None:
    graph = t.nodes(2, 2, inside_bytes_per_s=1e9, across_bytes_per_s=1e8)
    alone_s = step_seconds(graph, [(0, 2, 1e6)])
    assert step_seconds(graph, [(0, 2, 1e6), (1, 3, 1e6)]) == pytest.approx(2 * alone_s)
    assert step_seconds(graph, [(0, 2, 1e6), (2, 0, 1e6)]) == pytest.approx(alone_s)  # full duplex
    assert step_seconds(graph, [(0, 1, 1e6)]) == pytest.approx(alone_s / 10)
    # When the shorter flow ends, the longer one has the link to itself.
    assert step_seconds(graph, [(0, 2, 1e6), (1, 3, 3e6)]) == pytest.approx(4e6 / 1e8)


def test_a_badly_placed_ring_is_slower() -> None:
    good = t.nodes(2, 2, inside_bytes_per_s=2e9, across_bytes_per_s=1e8)
    ring = architectures.build("ring", 4)
    fit = fit_on(ring, good, 1.5)
    assert 1 / fit.beta_s_per_byte == pytest.approx(1e8)
    bad = type(good)(tuple(good.workers[i] for i in (0, 2, 1, 3)), good.links)
    assert fit_on(ring, bad, 1.5).beta_s_per_byte == pytest.approx(2 * fit.beta_s_per_byte)
