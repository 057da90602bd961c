import pytest

from tests.command_line import refused
from tightwire.bench.collectives import CollectivesBench
from tightwire.bench.programs import own_bound_s, wire_bound_s
from tightwire.errors import PlanError
from tightwire.lab import Topology

# A line that carries 125 MB of payload a second.
RATE = 125e6 * 1514 / 1448
STAR = Topology(workers=4, rate_bytes_per_s=RATE)
NODES = Topology(workers=4, rate_bytes_per_s=RATE, nodes=2, across_bytes_per_s=RATE / 20)


def test_wire_bound_is_the_payload_over_the_payload_rate() -> None:
    assert wire_bound_s("ring", 1_000_000, STAR) == pytest.approx(1.5e6 / 125e6)
    assert wire_bound_s("gloo", 1_000_000, STAR) == pytest.approx(1.5e6 / 125e6)
    assert wire_bound_s("allgather", 1_000_000, STAR) == pytest.approx(3e6 / 125e6)
    assert wire_bound_s("gossip:ring", 1_000_000, STAR) == pytest.approx(2e6 / 125e6)


def test_programs_have_bounds_of_their_own() -> None:
    for name in ("ring", "direct", "halving-doubling", "torus,shape=2x2"):
        assert own_bound_s(name, 1_000_000, STAR) == pytest.approx(wire_bound_s("ring", 1_000_000, STAR))
    assert own_bound_s("double-tree", 1_000_000, STAR) == pytest.approx(2e6 / 125e6)
    assert own_bound_s("allgather", 1_000_000, STAR) == pytest.approx(3e6 / 125e6)


def test_uplinks_bound_programs_by_who_crosses_them() -> None:
    """Two nodes: the least is M bytes; a well-placed ring crosses once with 1.5 M, a badly placed one twice."""
    uplink = 125e6 / 20
    assert wire_bound_s("ring", 1_000_000, NODES) == pytest.approx(1e6 / uplink)
    crossed = {"hierarchical": 1e6, "hierarchical/int8": 1e6, "ring": 1.5e6, "ring,order=0-2-1-3": 3e6}
    for name, num_bytes in crossed.items():
        assert own_bound_s(name, 1_000_000, NODES) == pytest.approx(num_bytes / uplink)


def test_unknown_programs_and_empty_buffers_are_refused() -> None:
    with pytest.raises(PlanError, match="rong is no known program"):
        CollectivesBench(workers=4, rate_bytes_per_s=1e6, sizes=(1024,), programs=("rong",))
    with pytest.raises(PlanError, match="at least one sample, and 4 bytes"):
        CollectivesBench(workers=4, rate_bytes_per_s=1e6, sizes=(0,), programs=("ring",))


@pytest.mark.parametrize(
    "options",
    [
        ["--rate", "0"],
        ["--rate", "none"],
        ["--sizes", "many"],
        ["--programs", "rong"],
        ["--workers", "1"],
        ["--topology", "nodes=3x2"],
    ],
)
def test_bad_input_ends_with_one_sentence(options: list[str]) -> None:
    assert options[0].lstrip("-").rstrip("s") in refused("bench", "collectives", *options)
