"""A thread that takes part in rounds for a worker that may still be computing."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tightwire.transport import Transport
from tightwire.transport.base import Watch
from tightwire.transport.blame import Wait
from tightwire.transport.helpers import leave

# How often the thread looks whether a round may begin, and whoever waits for it whom that waits for.
LOOK_S, WATCH_S = 0.01, 0.25


class Deputy:
    """Holds one round after another on a thread of its own, whenever one may begin, until there is no other.

    Attributes:
        lock: held by whoever looks at, or changes, what both threads know; not while a round is held.
        is_on: whether rounds are held; at first they are not.
        is_busy: whether one is under way.
    """

    def __init__(self, name: str, may_begin: Callable[[], bool], hold_round: Callable[[], bool]) -> None:
        """Starts the thread.

        Args:
            name: of the thread.
            may_begin: whether a round may begin; called with the lock held.
            hold_round: holds one, and returns whether there will be another.
        """
        self.lock = threading.Condition()
        self.is_on = self.is_busy = False
        self._is_closed = False
        self._may_begin, self._hold_round = may_begin, hold_round
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Holds rounds from now on."""
        with self.lock:
            self.is_on = True
            self.lock.notify_all()

    def wake(self) -> None:
        """Has the thread look now; the lock is held."""
        self.lock.notify_all()

    @property
    def is_sound(self) -> bool:
        """Whether nothing went wrong on the thread."""
        return self._failure is None

    def require_sound(self) -> None:
        """Raises what went wrong on the thread."""
        if self._failure is not None:
            raise self._failure

    def wait(
        self,
        until: Callable[[], bool],
        missing: Callable[[], frozenset[int]],
        transport: Transport,
        what: str,
    ) -> None:
        """Waits with the lock held, which is given up meanwhile.

        Args:
            until: what is waited for.
            missing: the ranks that must come for it, where no round is under way.
            transport: looks after the wait.
            what: they must come for, as in "to hand in its change".

        Raises:
            PeerError: one of those is gone, or late for longer than it may be.
            TightwireError: whatever went wrong on the thread.
        """
        awaited, watch = frozenset[int](), None
        try:
            while not until():
                self.require_sound()
                now = frozenset[int]() if self.is_busy else missing()
                if now != awaited:
                    awaited, watch = now, _watch(watch, transport, now, what)
                elif watch is not None:
                    watch.check()
                self.lock.wait(WATCH_S)
        finally:
            if watch is not None:
                watch.close()
        self.require_sound()

    def has_ended(self) -> bool:
        """Whether no round begins any more, and none that is under way is to land; asked with the lock held."""
        return self._is_closed

    def end(self) -> None:
        """Has no other round begin, and none land."""
        with self.lock:
            self._is_closed = True
            self.lock.notify_all()

    def close(self) -> None:
        """Ends the thread; a round under way is left to its deadline."""
        self.end()
        leave(self._thread, after_s=1.0)

    def _serve(self) -> None:
        while True:
            goes_on = False
            try:
                if not self._await_round():
                    return
                goes_on = self._hold_round()
            except BaseException as failure:  # whatever it is, the waiting thread must learn of it
                self._failure = failure
            with self.lock:
                self.is_busy = False
                self.is_on = self.is_on and goes_on
                self.lock.notify_all()

    def _await_round(self) -> bool:
        """Waits until one may begin; returns whether one does before this is closed."""
        with self.lock:
            while not (self._is_closed or (self.is_on and self._may_begin())):
                self.lock.wait(LOOK_S if self.is_on else None)
            self.is_busy = not self._is_closed
            return self.is_busy


def _watch(before: Watch | None, transport: Transport, ranks: frozenset[int], what: str) -> Watch | None:
    if before is not None:
        before.close()
    # Nothing of theirs may be under way that would fail: one that is gone is not waited for.
    return transport.watch(Wait(ranks, what), ends_run=True) if ranks else None
