"""Who is named when averaging in pairs ends: who was seen to be late or gone, and no partner beside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

from tightwire.architecture.gossip.neighbours import Lost
from tightwire.architecture.gossip.pairs import Pairs, Shared
from tightwire.errors import PeerError
from tightwire.runtime.talk import TalkThread
from tightwire.transport import Transport, run_threads


def pairs_over(transport: Transport, lost: Lost, partners: Sequence[int] = range(4)) -> Pairs:
    others = [rank for rank in partners if rank < transport.size and rank != transport.rank]
    return Pairs(transport.channel(), Shared([torch.zeros(3)]), others, lost)


def blamed(call: Callable[[], None]) -> tuple[int, ...]:
    try:
        call()
    except PeerError as error:
        return error.ranks
    return ()


def test_who_stops_late_is_named_where_another_was_lost_before() -> None:
    over = threading.Barrier(3)

    def worker(transport: Transport) -> tuple[int, ...]:
        pairs = pairs_over(transport, Lost({1} - {transport.rank}))
        if transport.rank == 1:
            return ()
        found: tuple[int, ...] = ()
        if transport.rank != 3:
            talk = TalkThread("talks", lambda: pairs.awaited, transport)
            talk.submit(pairs.stop)
            found = blamed(talk.wait)
        over.wait(60)
        return found

    assert run_threads(4, worker, deadline_s=0.5) == [(3,), (), (3,), ()]


def test_a_partner_whose_transfer_ends_with_the_run_is_not_to_blame() -> None:
    over = threading.Barrier(3)

    def worker(transport: Transport) -> tuple[int, ...]:
        pairs = pairs_over(transport, Lost(ends_round=True), partners=(0, 1))
        found: tuple[int, ...] = ()
        if transport.rank == 0:  # waits elsewhere for both others, and ends the run
            found = blamed(transport.barrier)
        elif transport.rank == 1:
            found = blamed(pairs.stop)
        over.wait(60)
        return found

    assert run_threads(3, worker, deadline_s=0.5)[1] == (2,)


def test_what_went_wrong_first_is_told_and_innocents_are_not_waited_for() -> None:
    over = threading.Barrier(2)

    def worker(transport: Transport) -> tuple[int, ...]:
        pairs = pairs_over(transport, Lost(ends_round=True))
        if transport.rank == 2:  # leaves
            return ()
        found = blamed(pairs.stop) if transport.rank == 0 else ()
        over.wait(60)
        return found

    assert run_threads(3, worker, deadline_s=60)[0] == (2,)
