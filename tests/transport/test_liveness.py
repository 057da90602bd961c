"""Who hears what: listeners that are gone, and a rank without which the others went on."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from typing import Any

import pytest

from tightwire.transport.blame import Verdict, Wait
from tightwire.transport.liveness import Liveness
from tightwire.transport.messages import Message
from tightwire.transport.seal import Seal
from tightwire.transport.traffic import Connection, Movement
from tightwire.transport.waiting import Waiting


class Transport:
    has_hung_up = False

    def hang_up(self) -> None:
        self.has_hung_up = True


def test_those_that_are_gone_are_forgotten() -> None:
    liveness = Liveness(0, host="127.0.0.1", deadline_s=5)
    for _ in range(50):
        liveness.on_verdict(weakref.WeakMethod(Transport().hang_up))
    liveness.leave()
    kept = [one for one in gc.get_objects() if type(one) is weakref.WeakMethod]
    assert sum(one() is None for one in kept) < 5


def test_who_begins_to_listen_after_the_verdict_hears_it_too() -> None:
    liveness, early, late = Liveness(0, host="127.0.0.1", deadline_s=5), Transport(), Transport()
    liveness.on_verdict(weakref.WeakMethod(early.hang_up))
    liveness._decide(Verdict((1,), "dead"))
    liveness.on_verdict(weakref.WeakMethod(late.hang_up))
    liveness.leave()
    assert early.has_hung_up
    assert late.has_hung_up


def test_who_was_given_up_does_not_blame_those_that_left_without_it() -> None:
    server, worker = (Liveness(rank, host="127.0.0.1", deadline_s=2) for rank in range(2))
    seal = Seal("secret", "nonce")
    server.meet({1: worker.address}, seal)
    server.lost.add(1)
    server.leave()
    worker.meet({0: server.address}, seal)  # it goes on only now
    error = worker.blame(Wait(frozenset({0}), "to receive 48 bytes"))
    worker.leave()
    assert error.ranks == ()
    assert str(error).startswith("the other workers gave this one (rank 1) up")


def test_what_was_said_before_a_port_closed_is_heard_before_anybody_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 2 dies; rank 1 says so and ends, just as rank 0 asks both: both ports are closed then."""
    seal = Seal("secret", "nonce")
    asks, tells, dies = (Liveness(rank, host="127.0.0.1", deadline_s=2) for rank in range(3))
    tells.meet({0: asks.address, 2: dies.address}, seal)
    asks._seal = seal
    asks._inquiry.meet({1: tells.address, 2: dies.address})  # nobody else listens: this test looks itself
    ask = asks._inquiry.ask

    def too_late(*waits: Any, **limits: Any) -> Any:
        dies._ear.close()
        tells._decide(Verdict((2,), "dead"))
        tells.leave()
        return ask(*waits, **limits)

    monkeypatch.setattr(asks._inquiry, "ask", too_late)
    wait = Wait(frozenset({1, 2}), "to connect to all ranks")
    asks._waits[0] = Waiting(lambda: wait, time.monotonic(), is_broken=True)
    asks.look()
    asks.leave()
    assert asks.verdict == Verdict((2,), "dead")


def test_who_is_waited_for_and_heard_to_be_silent_elsewhere_is_gone_at_once() -> None:
    liveness = Liveness(0, host="127.0.0.1", deadline_s=60)
    liveness.hear_silent([1])  # nobody waits
    liveness.look()
    assert liveness.verdict is None
    liveness.watch("wait", lambda: Wait(frozenset({1, 2}), "for an all-reduce"))
    assert liveness.waited_s() > 0
    liveness.look()  # what was said before any wait is no evidence
    assert liveness.verdict is None
    liveness.hear_silent([1, 3])
    liveness.look()
    liveness.leave()
    assert liveness.verdict == Verdict((1,), "silent")


def test_who_tells_of_silent_ranks_does_not_end_the_waits_for_them_itself() -> None:
    """A heartbeat tells: one that hangs in Gloo makes this worker look dead."""
    liveness, threads = Liveness(0, host="127.0.0.1", deadline_s=60), list[threading.Thread]()
    hung_up = threading.Event()

    class Waits:
        def hang_up(self) -> None:
            threads.append(threading.current_thread())
            hung_up.set()

    waits = Waits()
    liveness.on_verdict(weakref.WeakMethod(waits.hang_up))
    liveness.meet({}, Seal("secret", "nonce"))
    liveness.watch("wait", lambda: Wait(frozenset({1}), "for an all-reduce"))
    liveness.hear_silent([1])
    assert hung_up.wait(10)
    liveness.leave()
    assert threads == [liveness._ear._thread]


@pytest.mark.parametrize("waits_for", [1, 2])
def test_who_goes_on_after_others_went_on_without_it_knows_that_it_was_left_behind(waits_for: int) -> None:
    """Those that waited for it told a verdict, and the others that they leave."""
    first, frozen, third = ranks = [Liveness(rank, host="127.0.0.1", deadline_s=60) for rank in range(3)]
    seal, addresses = Seal("secret", "nonce"), {liveness.rank: liveness.address for liveness in ranks}
    for liveness in (first, third):
        liveness.meet({rank: a for rank, a in addresses.items() if rank != liveness.rank}, seal)
    first.watch("wait", lambda: Wait(frozenset({waits_for}), "for an all-reduce"))
    first.hear_silent([1])
    with first.changed:
        assert first.changed.wait_for(lambda: first.verdict is not None or waits_for == 2, 10)
    for liveness in (first, third):
        liveness.leave()
    frozen.meet({0: first.address, 2: third.address}, seal)  # it goes on only now
    ends_s = time.monotonic() + 10
    while not frozen.is_left_behind and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert frozen.is_left_behind
    frozen.leave()


class Clock:
    """Stands for `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tightwire.transport.liveness.time", clock)
    monkeypatch.setattr("tightwire.transport.program.is_blocked", lambda: True)
    return clock


def looks(liveness: Liveness, clock: Clock, seconds: float, *answers: Message) -> None:
    """Has rank 0 look for some seconds, while the same answers come."""
    for _ in range(round(seconds / 0.1)):
        clock.now += 0.1
        for answer in answers:
            liveness._note_answer(answer)
        liveness.look()


def waiting_for_1(*, size: int, ends_run: bool = True) -> Liveness:
    """Returns rank 0, which waits for rank 1."""
    liveness = Liveness(0, host="127.0.0.1", deadline_s=4)
    liveness._inquiry.meet({rank: ("127.0.0.1", rank) for rank in range(1, size)})
    wait = Wait(frozenset({1}), "to receive 4.00 MB, tag 3")
    liveness.watch("wait", lambda: wait, ends_run=ends_run, has_end=ends_run)
    return liveness


def waits_for_0(age_s: float, *, is_blocked: bool, is_moving: bool) -> Message:
    return Message(kind="here", sender=1, waits=(0,), age_s=age_s, is_blocked=is_blocked, is_moving=is_moving)


def test_ranks_that_wait_for_each_other_and_move_nothing_are_named_once_the_deadline_has_passed(
    clock: Clock,
) -> None:
    liveness = waiting_for_1(size=2)
    looks(liveness, clock, 3.8, waits_for_0(4.0, is_blocked=True, is_moving=False))
    assert liveness.verdict is None
    looks(liveness, clock, 1.0, waits_for_0(4.0, is_blocked=True, is_moving=False))
    liveness.leave()
    assert liveness.verdict == Verdict((0, 1), "cycle")


@pytest.mark.parametrize("mover", [0, 1])
def test_ranks_between_which_bytes_move_are_slow_and_waited_for(
    mover: int, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    liveness, moved = waiting_for_1(size=2), itertools.count(0, 50_000)
    if mover == 0:
        liveness._judge._movement = Movement(lambda: {7: Connection(next(moved), queued=0)})
    answer = waits_for_0(4.0, is_blocked=mover == 0, is_moving=mover == 1)
    looks(liveness, clock, 79, answer)
    assert liveness.verdict is None
    assert [r.message[:60] for r in caplog.records] == [
        "ranks 0 and 1 are alive but slow, bytes still move between t"
    ]
    looks(liveness, clock, 2, answer)  # late_s is 80 s
    liveness.leave()
    assert liveness.verdict == Verdict((0, 1), "slow")
    error = liveness.accuse(Wait(frozenset({1}), "to receive 4.00 MB, tag 3"))
    assert str(error).startswith(
        "ranks 0 and 1 are alive, and bytes still moved between them after 80 s while"
    )
    assert error.ranks == (1,)


def test_who_hears_nobody_at_all_gives_nobody_up(clock: Clock) -> None:
    server = waiting_for_1(size=4, ends_run=False)
    looks(server, clock, 5.5)
    assert server.lost == set()
    looks(
        server, clock, 5, Message(kind="here", sender=1), Message(kind="here", sender=2)
    )  # its link is back
    assert (server.lost, server.verdict) == (set(), None)
    looks(server, clock, 5)
    server.leave()
    assert (server.lost, server.verdict) == (set(), Verdict((), "alone"))


def test_whose_link_is_back_gives_nobody_up_that_answers_a_moment_after_the_first(clock: Clock) -> None:
    server = waiting_for_1(size=4, ends_run=False)
    looks(server, clock, 5.5)
    looks(server, clock, 0.5, Message(kind="here", sender=2))
    looks(server, clock, 5, Message(kind="here", sender=2), Message(kind="here", sender=1))
    server.leave()
    assert (server.lost, server.verdict) == (set(), None)


@pytest.mark.parametrize("ends_run", [False, True])
def test_who_hears_others_gives_a_silent_rank_up_a_deadline_after_its_last_answer(
    ends_run: bool, clock: Clock
) -> None:
    rank, other = waiting_for_1(size=4, ends_run=ends_run), Message(kind="here", sender=2)
    looks(rank, clock, 6, other, Message(kind="here", sender=1))
    looks(rank, clock, 3.8, other)
    assert (rank.lost, rank.verdict) == (set(), None)
    looks(rank, clock, 1, other)
    rank.leave()
    assert (rank.lost, rank.verdict) == ((set(), Verdict((1,), "silent")) if ends_run else ({1}, None))


def test_who_was_stopped_or_starved_does_not_take_that_time_for_silence_of_others(clock: Clock) -> None:
    rank = waiting_for_1(size=3)
    looks(rank, clock, 3, Message(kind="here", sender=1), Message(kind="here", sender=2))
    for _ in range(2):
        clock.now += 10  # longer than the deadline
        rank.look()
    assert rank.verdict is None
    for _ in range(6):  # also whoever is starved all the time comes to an end
        clock.now += 10
        rank._note_answer(Message(kind="here", sender=2))
        rank.look()
    rank.leave()
    assert rank.verdict == Verdict((1,), "silent")
