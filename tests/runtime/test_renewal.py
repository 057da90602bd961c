"""What a member of an elastic job gives to those that lack something."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tightwire.errors import PeerError
from tightwire.runtime import relay
from tightwire.runtime.cards import Card, Cards
from tightwire.runtime.membership import Membership
from tightwire.runtime.relay import hand_over
from tightwire.transport import Transport, run_threads
from tightwire.transport.door import Admission


def test_what_is_handed_over_comes_in_pieces_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "PIECE_BYTES", 100)
    sent: list[int] = []

    def work(transport: Transport) -> object:
        if transport.rank == 1:
            send = transport.isend

            def isend(tensor: torch.Tensor, dst: int, tag: int) -> object:
                sent.append(tensor.nbytes)
                return send(tensor, dst, tag)

            transport.isend = isend  # type: ignore[method-assign, assignment]
        luggage = {"weights": torch.arange(500.0), "step": 7} if transport.rank == 1 else None
        received = hand_over(transport, 1, [0, 3], luggage)
        transport.barrier()  # the source has gone on meanwhile
        return received

    received = run_threads(4, work)
    assert received[1] is None
    assert received[2] is None
    for got in (received[0], received[3]):
        assert isinstance(got, dict)
        assert got["step"] == 7
        assert torch.equal(got["weights"], torch.arange(500.0))
    assert max(sent) <= 100
    assert 20 < len(sent) < 40  # once, however many get it


def test_who_is_furthest_is_the_source_and_who_misses_a_round_lacks_it() -> None:
    cards = Cards(
        (
            Card(agreed=3, begun=4, is_new=False, step=9),
            Card(agreed=4, begun=4, is_new=False, step=9),
            Card(),
        )
    )
    assert cards.source == 1
    assert cards.lacking() == [0, 2]
    assert not cards.is_round_lost


class Ears:
    """A door that tells who is gone, and whether the next world is being connected."""

    name, watches, notice = "a", False, threading.Event()

    def __init__(self) -> None:
        self.silent, self.is_connecting = list[int](), False

    def enter(self, rounds: int) -> Admission:
        raise NotImplementedError

    def knocks(self) -> bool:
        return False

    def counts(self, ranks: Sequence[int]) -> bool:
        return False

    def gone(self) -> list[int]:
        return self.silent

    def is_left_behind(self) -> bool:
        return False

    def connects(self) -> bool:
        return self.is_connecting

    def close(self) -> None:
        pass


def test_a_round_without_a_silent_member_is_put_off_until_the_next_world_is_connected() -> None:
    door = Ears()
    membership = Membership((0, 1, 2), door=door)
    assert not membership.postpones
    door.silent, door.is_connecting = [1], True
    assert membership.postpones
    door.is_connecting = False
    with pytest.raises(PeerError, match="rank 1") as found:
        _ = membership.postpones
    assert found.value.ranks == (1,)


def test_a_member_that_left_is_not_missed() -> None:
    door = Ears()
    membership = Membership((0, 1, 2), door=door)
    membership.without([1])
    door.silent = [1]
    assert not membership.postpones


@pytest.mark.parametrize(
    ("old", "newcomer", "still"),
    [
        # A round is repeated, which some are within: all make its step together.
        ([Card(agreed=4, begun=4), Card(agreed=4, begun=5, is_in_step=True)], 0, [0, -1]),
        # It is dropped on all, who are within its step.
        ([Card(agreed=4, begun=5, is_in_step=True), Card(agreed=4, begun=5, is_in_step=True)], 0, [0, 0]),
        # One has its outcome; the other is within its step, which changes nothing any more.
        ([Card(agreed=5, begun=5), Card(agreed=4, begun=5, is_in_step=True)], 0, [0, 0]),
        # One has made the step for the next round already, which the other is about to make.
        ([Card(agreed=4, begun=5), Card(agreed=3, begun=4)], 0, [0, 1]),
        ([Card(agreed=4, begun=5), Card(agreed=4, begun=4)], 0, [0, 1]),
    ],
)
def test_all_make_the_next_step_together_once_each_has_made_what_any_has(
    old: list[Card], newcomer: int, still: list[int]
) -> None:
    cards = Cards((*(replace(card, is_new=False) for card in old), Card()))
    assert [cards.still_to_make(rank, as_source=False) for rank in range(len(old))] == still
    assert cards.still_to_make(cards.source, as_source=True) == newcomer
