"""A thread for what neighbours tell each other, and a wait for it that ends and names whom it waited for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from tightwire.transport.blame import Verdict, Wait, accuse

Awaited = Callable[[], frozenset[int]]


class Lane:
    """Does one thing after another on a thread of its own.

    Talk between neighbours has no deadline of its own, for one that is gone must not end everybody's; whoever waits
    for this thread has one, and it begins anew whenever another neighbour is awaited.
    """

    def __init__(self, name: str, awaited: Awaited, deadline_s: float) -> None:
        """Starts the thread.

        Args:
            name: of the thread.
            awaited: whom the thread waits for at present.
            deadline_s: the longest that it may wait for the same ranks.
        """
        self._awaited, self._deadline_s = awaited, deadline_s
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._pending = 0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], None]) -> None:
        """Has `call` done once all before it is."""
        with self._changed:
            self._pending += 1
        self._todo.put(call)

    def is_idle(self) -> bool:
        """Whether all is done; raises what went wrong."""
        if self._failure is not None:
            raise self._failure
        return self._pending == 0

    def wait(self) -> None:
        """Waits until all is done.

        Raises:
            PeerError: the thread waited for the same ranks for longer than the deadline.
            TightwireError: whatever went wrong on the thread.
        """
        with self._changed:
            while self._pending and self._failure is None:
                awaited = self._awaited()
                if not self._changed.wait(self._deadline_s) and awaited and awaited == self._awaited():
                    wait = Wait(awaited, "for gossip")
                    raise accuse(
                        Verdict(tuple(sorted(awaited)), "silent"), waiting=wait, deadline_s=self._deadline_s
                    )
        if self._failure is not None:
            raise self._failure

    def close(self) -> bool:
        """Ends the thread; returns whether it could, or hangs on a neighbour."""
        self._todo.put(None)
        self._thread.join(timeout=1.0)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while (call := self._todo.get()) is not None:
            try:
                if self._failure is None:
                    call()
            except BaseException as failure:  # whatever it is, the waiting thread must learn of it
                self._failure = failure
            with self._changed:
                self._pending -= 1
                self._changed.notify_all()
