"""The simulator's kernel: virtual time, as a heap of what happens next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence

Action = Callable[[], None]


class VirtualClock:
    """Virtual time. Actions at the same time happen in the order in which they were asked for.

    >>> clock, seen = VirtualClock(), []
    >>> clock.after(2.0, lambda: seen.append(clock.now_s)); clock.after(1.0, lambda: seen.append(clock.now_s))
    >>> clock.run(); seen
    [1.0, 2.0]
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Action]] = []
        self._count = itertools.count()

    def after(self, delay_s: float, action: Action) -> None:
        """Lets `action` happen `delay_s` from now."""
        assert delay_s >= 0.0, delay_s
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._count), action))

    def run(self) -> None:
        """Runs until nothing is left to happen."""
        while self._heap:
            self.now_s, _, action = heapq.heappop(self._heap)
            action()


class Computation:
    """A stretch of work with milestones, done at a speed that may change on the way.

    Args:
        clock: virtual time.
        milestones: (amount of work in seconds at speed 1, what happens then), ascending.
    """

    def __init__(self, clock: VirtualClock, milestones: Sequence[tuple[float, Action]]) -> None:
        self._clock = clock
        self._milestones = milestones
        self._next = 0
        self._done_s = 0.0
        self._speed = 1.0
        self._since_s = clock.now_s
        self._version = 0
        self._schedule()

    def set_speed(self, speed: float) -> None:
        """Goes on at `speed` seconds of work per second."""
        if speed != self._speed:
            self._done_s += (self._clock.now_s - self._since_s) * self._speed
            self._since_s, self._speed = self._clock.now_s, speed
            self._schedule()

    def _schedule(self) -> None:
        self._version += 1
        if self._next < len(self._milestones):
            left_s = max(0.0, self._milestones[self._next][0] - self._done_s)
            version = self._version
            self._clock.after(left_s / self._speed, lambda: self._reach(version))

    def _reach(self, version: int) -> None:
        if version != self._version:  # the speed has changed since
            return
        self._done_s, action = self._milestones[self._next]
        self._since_s = self._clock.now_s
        self._next += 1
        action()
        if version == self._version:  # else the action changed the speed, and with it the schedule
            self._schedule()
