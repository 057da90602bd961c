"""Memory for pieces about to land: one block for all runners of a lane, and none that a failed one may still fill."""

from __future__ import annotations

import torch

from tightwire.architecture.allreduce.landing import Slots, _rooms
from tightwire.transport import Single

CPU = torch.device("cpu")


def test_runners_of_one_lane_have_the_same_memory_in_turn() -> None:
    lane = Single()
    small, large = Slots(lane, 2, 100, CPU), Slots(lane, 4, 1000, CPU)
    small.begin()
    first = small[1]
    assert first.numel() == 128
    assert first.data_ptr() % 64 == 0
    small.end()
    large.begin()
    assert large[0].data_ptr() == first.data_ptr() - 128
    large.end()
    assert [free.block.numel() for free in _rooms[lane]._free] == [4 * 1024]


def test_what_a_failed_run_had_stays_its_own() -> None:
    lane = Single()
    failed, next_one = Slots(lane, 1, 64, CPU), Slots(lane, 1, 64, CPU)
    failed.begin()  # and never ends
    next_one.begin()
    assert next_one[0].data_ptr() != failed[0].data_ptr()


def test_without_slots_there_is_no_memory() -> None:
    lane = Single()
    slots = Slots(lane, 0, 1000, CPU)
    slots.begin()
    slots.end()
    assert not _rooms[lane]._free
