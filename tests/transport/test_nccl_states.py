"""Every order in which ranks' devices could start NCCL's groups: two lanes of every program end, given a queue each.

A group is a kernel: it ends once every send and receive of it has its other half in a group that has started. A lane's
groups start one after another, each when the one before has ended and its device has a queue to spare for it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.transport.fake_nccl import Complete, FakeCommunicator, Hubs
from tests.transport.test_nccl import KIND, averaged
from tightwire.architecture import build
from tightwire.architecture.allreduce.builders import PROGRAMS
from tightwire.errors import ProgramError
from tightwire.transport import Transport, run_threads
from tightwire.transport.nccl import Nccl

# By rank, then in order: who is sent to and who is received from, within each group.
Asked = list[list[tuple[list[int], list[int]]]]
# By rank, by lane, in order: the groups of other ranks that each must meet, as (rank, number).
Met = list[list[list[set[tuple[int, int]]]]]


class Noted(FakeCommunicator):
    """Writes down what it is asked for."""

    asked: Asked

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]
    ) -> Complete:
        self.asked[self.rank].append(([peer for _, peer in sends], [peer for _, peer in receives]))
        return super().together(sends, receives)


def asked_by(program: str, codec: str, size: int) -> Asked:
    """Returns the groups that a program asks for, as they are asked for over the fake communicator."""
    hubs = Hubs()
    asked: Asked = [[] for _ in range(size)]

    def connect(transport: Transport, name: str, at: torch.device) -> Noted:
        made = Noted(hubs.connect(transport, name, at).hub, transport.rank)
        made.asked = asked
        return made

    run_threads(
        size, lambda t: averaged(program, codec, size, 600)(Nccl(t, connect, kind=KIND)), deadline_s=60
    )
    return asked


def met(asked: Asked, lanes: int) -> Met:
    """Returns whom each group must meet: the k-th message between two ranks is the k-th receive."""
    places: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for rank, groups in enumerate(asked):
        for number, (sends, receives) in enumerate(groups):
            for peer in sends:
                places[rank, peer, True].append(number)
            for peer in receives:
                places[peer, rank, False].append(number)
    found: Met = [[[set() for _ in groups] for _ in range(lanes)] for groups in asked]
    for (source, target, sends), numbers in list(places.items()):
        others = places[source, target, not sends]
        assert len(numbers) == len(others), "a send without a receive"
        for number, other in zip(numbers, others, strict=True):
            rank, peer = (source, target) if sends else (target, source)
            for lane in range(lanes):
                found[rank][lane][number].add((peer, other))
    return found


def hangs(groups: Met, queues: int) -> bool:
    """Walks every state of devices that start groups as they like; whether in one of them nothing more can start."""
    lanes = [(rank, lane) for rank, of in enumerate(groups) for lane in range(len(of))]
    seen: set[tuple[int, ...]] = set()
    frontier = [(0,) * len(lanes)]  # groups started
    while frontier:
        at = frontier.pop()
        if at in seen:
            continue
        seen.add(at)
        started = dict(zip(lanes, at, strict=True))
        under_way = {
            (rank, lane)
            for (rank, lane), n in started.items()
            if n and any(started[peer, lane] <= number for peer, number in groups[rank][lane][n - 1])
        }
        busy = [sum((rank, lane) in under_way for lane in range(len(of))) for rank, of in enumerate(groups)]
        able = [
            place
            for place, (rank, lane) in enumerate(lanes)
            if at[place] < len(groups[rank][lane]) and (rank, lane) not in under_way and busy[rank] < queues
        ]
        if not able and (
            under_way or any(n < len(groups[rank][lane]) for (rank, lane), n in started.items())
        ):
            return True
        frontier += [tuple(n + (place == p) for p, n in enumerate(at)) for place in able]
    return False


CASES = [
    (name, size)
    for name, size in itertools.product(PROGRAMS, (2, 3, 4))
    if name not in ("native", "synthesised")
]


@pytest.mark.parametrize(("program", "size"), CASES)
def test_two_lanes_of_a_program_end_in_every_order_where_each_has_a_queue(program: str, size: int) -> None:
    try:
        gathers = build(program, size).gathers
    except ProgramError:
        return
    groups = met(asked_by(program, "topk:0.1" if gathers else "none", size), lanes=2)
    assert not hangs(groups, queues=2)
    assert hangs(groups, queues=1)  # each device may have given its one queue to another lane


def test_what_no_order_can_end_is_found() -> None:
    both_receive_first: Asked = [[([], [1]), ([1], [])], [([], [0]), ([0], [])]]
    assert hangs(met(both_receive_first, lanes=1), queues=9)
    a_ring_of_sends: Asked = [[([(r + 1) % 3], []), ([], [(r - 1) % 3])] for r in range(3)]
    assert hangs(met(a_ring_of_sends, lanes=1), queues=9)
