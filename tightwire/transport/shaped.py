"""A slower network in user space, for where the kernel's traffic control cannot be had."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

from tightwire.transport.base import Transport, Work, check_message, native_bytes
from tightwire.transport.wrapper import Wrapper

if TYPE_CHECKING:
    from torch import Tensor


@final
class ShapedDirection:
    """One direction of a link: messages pass one after another, each taking its bytes over the rate."""

    def __init__(self, rate_bytes_per_s: float) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def pass_at(self, num_bytes: int, ready_at: float, *, began_at: float) -> float:
        """Returns when a message, complete at `ready_at`, has passed; its first byte came at `began_at`."""
        with self._lock:
            self._free_at = max(ready_at, max(began_at, self._free_at) + num_bytes / self.rate_bytes_per_s)
            return self._free_at


@final
class Shaped(Wrapper):
    """A transport on a link of a given rate, each way, and latency; channels and groups share the link.

    A message leaves when the ones before it have left, arrives `latency_s` later, and is read once it has
    passed the receiver's line too, so both fan-out and fan-in queue. A native all-reduce is charged
    `native_bytes` and 2 (size − 1) latencies, for its own steps cannot be delayed from outside.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        rate_bytes_per_s: float,
        latency_s: float = 0.0,
        lines: tuple[ShapedDirection, ShapedDirection] | None = None,
    ) -> None:
        """Wraps `inner`.

        Args:
            inner: the transport to slow down; it must be faster than the rate.
            rate_bytes_per_s: payload rate of this rank's line, each way.
            latency_s: one way.
            lines: the outgoing and the incoming line, where another wrapper shares them.
        """
        super().__init__(inner)
        self.rate_bytes_per_s = rate_bytes_per_s
        self.latency_s = latency_s
        self._out, self._in = lines or (ShapedDirection(rate_bytes_per_s), ShapedDirection(rate_bytes_per_s))
        self._clock = _Clock()

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Sends once the line is free and the message has travelled."""
        check_message(self, tensor, dst)
        now = time.monotonic()
        leaves_at = self._out.pass_at(tensor.nbytes, now, began_at=now)
        return _Later(self._clock, leaves_at + self.latency_s, lambda: self.inner.isend(tensor, dst, tag))

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Receives; complete once the message has passed this rank's incoming line."""
        return _Arrival(self.inner.irecv(tensor, src, tag), self._in, tensor.nbytes)

    def all_reduce(self, tensor: Tensor) -> Work:
        """Sums; complete no sooner than a ring would be on this line."""
        num_bytes = native_bytes(tensor.numel(), tensor.element_size(), self.size, self.rank)
        now = time.monotonic()
        ready_at = self._out.pass_at(num_bytes, now, began_at=now) + 2 * (self.size - 1) * self.latency_s
        return _NotBefore(self.inner.all_reduce(tensor), ready_at)

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Puts a channel or a group on the same link."""
        return Shaped(
            child,
            rate_bytes_per_s=self.rate_bytes_per_s,
            latency_s=self.latency_s,
            lines=(self._out, self._in),
        )

    def close(self) -> None:
        """Closes the inner transport once everything under way has left."""
        self._clock.stop()
        self.inner.close()


@final
class _Clock:
    """Does things at their time, in order, on one thread that starts when first needed."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def at(self, when: float, action: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (when, next(self._order), action))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tightwire shaped", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while action := self._next():
            action()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while self._due or not self._stopping:
                now = time.monotonic()
                if self._due and self._due[0][0] <= now:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(self._due[0][0] - now if self._due else None)
        return None


@final
class _Later:
    """A send that begins later."""

    def __init__(self, clock: _Clock, when: float, begin: Callable[[], Work]) -> None:
        self._begin = begin
        self._begun = threading.Event()
        self._work: Work | None = None
        self._error: BaseException | None = None
        clock.at(when, self._start)

    def wait(self) -> None:
        self._begun.wait()
        if self._error is not None:
            raise self._error
        assert self._work is not None
        self._work.wait()

    def attend(self) -> bool:
        self._begun.wait()
        return self._work is not None and self._work.attend()

    def _start(self) -> None:
        try:
            self._work = self._begin()
        except BaseException as error:
            self._error = error
        self._begun.set()


@final
class _Arrival:
    """A receive that is complete once its bytes have passed the incoming line."""

    def __init__(self, work: Work, line: ShapedDirection, num_bytes: int) -> None:
        self._work, self._line, self._num_bytes = work, line, num_bytes

    def wait(self) -> None:
        self._work.wait()
        self._pass()

    def attend(self) -> bool:
        arrived = self._work.attend()
        if arrived:
            self._pass()
        return arrived

    def _pass(self) -> None:
        now = time.monotonic()
        _sleep_until(
            self._line.pass_at(
                self._num_bytes, now, began_at=now - self._num_bytes / self._line.rate_bytes_per_s
            )
        )
        self._num_bytes = 0  # waiting again costs nothing


@final
class _NotBefore:
    """Work that is complete at a certain time at the earliest."""

    def __init__(self, work: Work, ready_at: float) -> None:
        self._work, self._ready_at = work, ready_at

    def wait(self) -> None:
        self._work.wait()
        _sleep_until(self._ready_at)

    def attend(self) -> bool:
        self.wait()
        return True


def _sleep_until(when: float) -> None:
    if (remaining := when - time.monotonic()) > 0:
        time.sleep(remaining)
