"""A thread for what neighbours tell each other, and a wait for it that ends and names whom it waited for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from tightwire.transport import Transport
from tightwire.transport.base import Watch
from tightwire.transport.blame import Wait
from tightwire.transport.helpers import leave

# How often whoever waits for the thread looks whom that waits for.
LOOK_S = 0.25

Awaited = Callable[[], frozenset[int]]


class TalkThread:
    """Does one thing after another on a thread of its own.

    Talk between neighbours has no deadline of its own, for one that is gone must not end everybody's; whoever waits
    for this thread has one, which the transport looks after, and it begins anew whenever another neighbour is awaited.
    """

    def __init__(
        self, name: str, awaited: Awaited, transport: Transport, look: Callable[[], None] = lambda: None
    ) -> None:
        """Starts the thread.

        Args:
            name: of the thread.
            awaited: whom the thread waits for at present.
            transport: by which it talks.
            look: called now and then by whoever waits for the thread.
        """
        self._awaited, self._transport, self._look = awaited, transport, look
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
            PeerError: the thread waited for the same ranks, which are alive, for longer than they may be late.
            TightwireError: whatever went wrong on the thread.
        """
        awaited, watch = frozenset[int](), None
        try:
            with self._changed:
                while self._pending and self._failure is None:
                    if (now := self._awaited()) != awaited:
                        awaited, watch = now, self._watch(now, watch)
                    elif watch is not None:
                        watch.check()
                    self._look()
                    self._changed.wait(LOOK_S)
        finally:
            if watch is not None:
                watch.close()
        if self._failure is not None:
            raise self._failure

    def _watch(self, awaited: frozenset[int], before: Watch | None) -> Watch | None:
        if before is not None:
            before.close()
        return self._transport.watch(Wait(awaited, "for gossip")) if awaited else None

    def close(self) -> bool:
        """Ends the thread; returns whether it could, or hangs on a neighbour."""
        self._todo.put(None)
        leave(self._thread, after_s=1.0)
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
