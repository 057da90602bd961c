"""Virtual time on the traced device: what a run of the real code would take where copies have a rate.

Every stream and every thread of the host has a time of its own. A copy moves its stream's on, an event carries it, and
who waits for the event has waited until then: time by the same rules as vector clocks, whatever order work is done in.
"""

from __future__ import annotations

import threading

from tightwire.devices.traced.streams import Stream


class VirtualTime:
    """Seconds of streams and of threads since the beginning; computing takes none."""

    def __init__(self, copy_bytes_per_s: float) -> None:
        """Begins at zero; copies take their bytes over this rate, those of one stream one after the other."""
        self._rate = copy_bytes_per_s
        self._streams: dict[int, float] = {}
        self._threads: dict[int, float] = {}
        self._kept: list[Stream] = []  # an address is a name only as long as nothing else can have it
        self._lock = threading.Lock()

    @property
    def host_s(self) -> float:
        """The time of the thread that asks."""
        return self._threads.get(threading.get_ident(), 0.0)

    def wait_until(self, at_s: float) -> None:
        """Has the thread that asks have waited until then, if it is not beyond."""
        with self._lock:
            self._threads[threading.get_ident()] = max(self.host_s, at_s)

    def copy(self, stream: Stream, num_bytes: int) -> None:
        """Starts a copy on a stream, once the thread has asked for it and what came before is over."""
        self.follow(stream, self.host_s)
        with self._lock:
            self._streams[id(stream)] += num_bytes / self._rate

    def follow(self, stream: Stream, at_s: float) -> None:
        """Has what comes on a stream begin no sooner."""
        with self._lock:
            if id(stream) not in self._streams:
                self._kept.append(stream)
            self._streams[id(stream)] = max(self._streams.get(id(stream), 0.0), at_s)

    def end_of(self, stream: Stream) -> float:
        """Returns when a stream is done with what it was asked for so far."""
        return self._streams.get(id(stream), 0.0)
