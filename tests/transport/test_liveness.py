"""Who hears what: listeners that are gone, and a rank without which the others went on."""

from __future__ import annotations

import gc
import weakref

from tightwire.transport.blame import Verdict, Wait
from tightwire.transport.liveness import Liveness
from tightwire.transport.seal import Seal


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


def test_who_is_waited_for_and_heard_to_be_silent_elsewhere_is_gone_at_once() -> None:
    liveness = Liveness(0, host="127.0.0.1", deadline_s=60)
    liveness.hear_silent([1])  # nobody waits
    assert liveness.verdict is None
    liveness.watch("wait", lambda: Wait(frozenset({1, 2}), "for an all-reduce"))
    assert liveness.waited_s() > 0
    liveness.hear_silent([1, 3])
    liveness.leave()
    assert liveness.verdict == Verdict((1,), "silent")
