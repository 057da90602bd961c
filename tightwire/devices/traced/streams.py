"""Streams whose work is done late: in order within one, and across them in whatever order an adversary picks.

Nothing runs when it is asked for. It runs when the host waits for it, or when the adversary feels like it, so that a
reader which does not wait for its writer reads what was there before.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tightwire.devices.traced.clocks import Access, Clock, TouchedMemory

Span = tuple[int, int, int]  # block, start, stop: addresses


@dataclass(eq=False)
class StreamEvent:
    """A place in a stream.

    Attributes:
        clock: what whoever follows it learns.
        stream: whose.
        number: how many of the stream's tasks come before it.
    """

    clock: Clock
    stream: Stream
    number: int


@dataclass(eq=False)
class Stream:
    """A queue of work.

    Attributes:
        name: of the agent that it is.
        clock: of what has been asked for so far.
        asked: tasks asked for.
        done: tasks done.
    """

    name: str
    clock: Clock = field(default_factory=Clock)
    asked: int = 0
    done: int = 0
    tasks: deque[Callable[[], None] | StreamEvent] = field(default_factory=deque)


class Streams:
    """Holds all streams of a process, and decides which of them progresses.

    Attributes:
        memory: who touched what.
        waits: lines of ours that had the host wait for a stream.
        lock: guards everything here.
    """

    def __init__(self, seed: int = 0, haste: float = 0.0) -> None:
        """Starts with nothing.

        Args:
            seed: of the adversary.
            haste: how many tasks it runs, on average, whenever one is asked for; 0: none before the host waits.
        """
        self.memory = TouchedMemory()
        self.waits: set[str] = set()
        self.lock = threading.RLock()
        self._random, self._haste = random.Random(seed), haste
        self._streams: list[Stream] = []
        self._defaults: dict[int, Stream] = {}
        self._current = threading.local()
        self._hosts: dict[int, Clock] = {}

    def stream(self, name: str) -> Stream:
        """Makes one, of a name of its own."""
        with self.lock:
            made = Stream(f"stream {len(self._streams)} ({name})")
            self._streams.append(made)
            return made

    def current(self, index: int) -> Stream:
        """Returns the stream that this thread asks a device for, by the device's index."""
        of_thread: dict[int, Stream] = self._current.__dict__.setdefault("streams", {})
        if index in of_thread:
            return of_thread[index]
        with self.lock:
            if index not in self._defaults:
                self._defaults[index] = self.stream(f"default of device {index}")
            return self._defaults[index]

    def make_current(self, index: int, stream: Stream | None) -> None:
        """Has what this thread asks for go to `stream`; None: to the device's default one."""
        of_thread: dict[int, Stream] = self._current.__dict__.setdefault("streams", {})
        of_thread.pop(index, None)
        if stream is not None:
            of_thread[index] = stream

    def ask(
        self, stream: Stream, task: Callable[[], None], reads: list[Span], writes: list[Span], what: str
    ) -> None:
        """Queues work, and notes what it will touch."""
        with self.lock:
            stream.clock.join(self._host())
            count = stream.clock.tick(stream.name)
            self._touch(stream.name, count, stream.clock, reads, writes, what)
            stream.tasks.append(task)
            stream.asked += 1
            self._progress()

    def touch_on_host(self, reads: list[Span], writes: list[Span], what: str) -> None:
        """Notes what this thread touches now, itself."""
        with self.lock:
            clock = self._host()
            agent = self._host_name()
            self._touch(agent, clock.tick(agent), clock, reads, writes, what)

    def record(self, stream: Stream) -> StreamEvent:
        """Marks what has been asked of a stream, and what this thread knows."""
        with self.lock:
            clock = stream.clock.copy()
            clock.join(self._host())
            self._host().tick(self._host_name())
            return StreamEvent(clock, stream, stream.asked)

    def follow(self, stream: Stream, event: StreamEvent) -> None:
        """Has what is asked of a stream from now on begin after an event."""
        with self.lock:
            stream.clock.join(event.clock)
            if event.stream is not stream:
                stream.tasks.append(event)
                stream.asked += 1

    def wait(self, event: StreamEvent) -> None:
        """Does all that an event marks; the host has waited for it then."""
        with self.lock:
            self._run_to(event)
            self._host().join(event.clock)

    def wait_at(self, line: str) -> None:
        """Notes which line has the host wait."""
        with self.lock:
            self.waits.add(line)

    def drain(self) -> None:
        """Does all that any stream was asked for; the host has waited for all of it then."""
        with self.lock:
            for stream in tuple(self._streams):
                self.wait(self.record(stream))

    def knowledge(self) -> Clock:
        """Returns what this thread knows, for another one to learn."""
        with self.lock:
            known = self._host().copy()
            self._host().tick(self._host_name())
            return known

    def learn(self, known: Clock) -> None:
        """Has this thread know what another one did."""
        with self.lock:
            self._host().join(known)

    def _host(self) -> Clock:
        return self._hosts.setdefault(threading.get_ident(), Clock())

    def _host_name(self) -> str:
        thread = threading.current_thread()
        return f"host thread {thread.name} ({thread.ident})"

    def _touch(
        self, agent: str, count: int, clock: Clock, reads: list[Span], writes: list[Span], what: str
    ) -> None:
        for spans, is_write in ((reads, False), (writes, True)):
            for block, start, stop in spans:
                self.memory.touch(block, Access(start, stop, is_write, agent, count, what), clock)

    def _run_to(self, event: StreamEvent) -> None:
        while event.stream.done < event.number:
            self._run_head(event.stream)

    def _run_head(self, stream: Stream) -> None:
        task = stream.tasks[0]
        if isinstance(task, StreamEvent):
            self._run_to(task)
        else:
            task()
        stream.tasks.popleft()
        stream.done += 1

    def _progress(self) -> None:
        """Lets streams run ahead as the adversary likes, none past an event that it would have to wait for."""
        while self._haste and self._random.random() < self._haste / (1 + self._haste):
            able = [s for s in self._streams if s.tasks and self._is_able(s)]
            if not able:
                return
            self._run_head(self._random.choice(able))

    @staticmethod
    def _is_able(stream: Stream) -> bool:
        task = stream.tasks[0]
        return not isinstance(task, StreamEvent) or task.stream.done >= task.number
