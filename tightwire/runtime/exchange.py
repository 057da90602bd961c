"""The runtime that moves buckets: one communication thread, driven by a scheduler."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tightwire.reducers.averager import Averager, Round
from tightwire.runtime.trace import Tracer
from tightwire.schedule import Scheduler


class Exchange:
    """Averages a set of buckets once per round, on a thread of its own, in the scheduler's order.

    A round is `begin`, `ready` for each bucket as it fills, `end`, `wait`. The thread sleeps between events and
    holds the interpreter lock only between transfers.

    Contract: every rank runs the same rounds. Only `wait` blocks; what a round sends is `bytes_in` it.
    """

    def __init__(self, averagers: Sequence[Averager], scheduler: Scheduler, tracer: Tracer) -> None:
        self.averagers = tuple(averagers)
        self._scheduler = scheduler
        self._tracer = tracer
        self._now = Round()
        self._moved = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="tightwire-communication", daemon=True)
        self._thread.start()

    def bytes_in(self, round_number: int) -> int:
        """Returns the payload bytes that this rank sends in a round."""
        return sum(averager.bytes_in(round_number) for averager in self.averagers)

    def begin(self, now: Round) -> None:
        """Starts a round; no bucket is ready."""
        with self._changed:
            self._now, self._moved = now, 0
            self._scheduler.begin()

    def ready(self, bucket: int) -> None:
        """Hands a filled bucket to the thread; its memory is the thread's until `wait` returns."""
        with self._changed:
            self._scheduler.ready(bucket)
            self._changed.notify_all()

    def end(self) -> None:
        """Tells that no more buckets will fill: all that are left move as they are."""
        with self._changed:
            self._scheduler.end()
            self._changed.notify_all()

    def wait(self) -> bool:
        """Waits until every bucket holds its mean.

        Returns:
            Whether all means are finite; the same on every rank. Only then the round is kept.

        Raises:
            TightwireError: whatever went wrong on the communication thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._moved == len(self.averagers))
        if self._failure is not None:
            raise self._failure
        finite = all(averager.finite for averager in self.averagers)
        if finite:
            for averager in self.averagers:
                averager.keep()
        return finite

    def close(self) -> None:
        """Ends the thread; a transfer under way is left to its deadline."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)

    def _serve(self) -> None:
        while (bucket := self._await_work()) is not None:
            try:
                with self._tracer.span("communication", f"bucket {bucket}"):
                    self.averagers[bucket].run(self._now)
            except BaseException as failure:  # whatever it is, the waiting thread must learn of it
                self._failure = failure
            with self._changed:
                self._moved += 1
                self._changed.notify_all()

    def _await_work(self) -> int | None:
        with self._changed:
            while not self._closed and self._failure is None:
                if (bucket := self._scheduler.next()) is not None:
                    return bucket
                self._changed.wait()
        return None
