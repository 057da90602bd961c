"""What a process keeps of those that want to hear a verdict."""

from __future__ import annotations

import gc
import weakref

from tightwire.transport.liveness import Liveness


class Transport:
    def hang_up(self) -> None:
        """Does nothing."""


def test_those_that_are_gone_are_forgotten() -> None:
    liveness = Liveness(0, host="127.0.0.1", deadline_s=5)
    for _ in range(50):
        liveness.on_verdict(weakref.WeakMethod(Transport().hang_up))
    liveness.leave()
    kept = [one for one in gc.get_objects() if type(one) is weakref.WeakMethod]
    assert sum(one() is None for one in kept) < 5
