"""The formula for messages by pinned memory, held to the code itself in virtual time."""

from __future__ import annotations

import pytest

from tests.traced.training import TRACED
from tightwire.bench.gpu_crossing import PCIE_BYTES_PER_S, WIRES, _crossing
from tightwire.bench.gpu_pinned import ASKED
from tightwire.devices.traced import VirtualTime
from tightwire.devices.traced.streams import Stream
from tightwire.simulate.sharing import crossing_s

NUM_BYTES = 6 * 2**20


@pytest.mark.parametrize("wire", WIRES)
def test_a_native_sum_takes_what_the_formula_says(wire: str) -> None:
    found = _crossing(TRACED, NUM_BYTES, "native", wire)
    expected_s = crossing_s(NUM_BYTES / WIRES[wire], 2 * NUM_BYTES / PCIE_BYTES_PER_S, steps=1, pieces=6)
    assert found.simulated_s == pytest.approx(expected_s, rel=1e-6)
    assert found.ratio <= 1 + 1 / 6 + 1e-6
    assert TRACED.timing is None


def test_a_message_of_25_megabytes_stays_within_what_was_asked() -> None:
    wire_s, copies_s = 25e6 / WIRES["100 Gb/s"], 50e6 / PCIE_BYTES_PER_S
    assert wire_s == pytest.approx(copies_s)  # nowhere is it more
    assert crossing_s(wire_s, copies_s, steps=1, pieces=24) / wire_s <= ASKED


def test_virtual_time_goes_by_streams_and_by_who_waits() -> None:
    timing, up, down = VirtualTime(10.0), Stream("up"), Stream("down")
    timing.copy(up, 20)
    timing.copy(up, 10)  # behind the first
    timing.copy(down, 5)  # beside both
    assert (timing.end_of(up), timing.end_of(down), timing.host_s) == (3.0, 0.5, 0.0)
    timing.wait_until(timing.end_of(up))
    timing.copy(down, 5)  # was asked for only then
    assert timing.end_of(down) == 3.5
    timing.follow(up, 9.0)
    assert timing.end_of(up) == 9.0
