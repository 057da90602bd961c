"""Who may touch a shard: one thread at a time, on a device too."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from tightwire.devices import device_named

if TYPE_CHECKING:
    import torch


@final
class Turns:
    """A condition whose holders' work on a device is done in the order in which they held it.

    A device does a thread's work later than it is asked for, and each thread asks for it on a stream of its own. So
    whoever takes a turn first follows whoever had the one before; on a host there is nothing to follow. Not reentrant.
    """

    def __init__(self, at: torch.device) -> None:
        """The first turn follows what this thread has asked of the device so far."""
        self._device, self._at = device_named(at), at
        self._changed = threading.Condition(threading.Lock())
        self._last = self._device.mark(at)

    def __enter__(self) -> None:
        self._changed.acquire()
        self._begin()

    def __exit__(self, *error: object) -> None:
        try:
            self._end()
        finally:
            self._changed.release()

    def wait(self, timeout_s: float) -> None:
        """Lets others have their turns until one of them notifies; the caller has one before and after."""
        self._end()
        self._changed.wait(timeout_s)
        self._begin()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within it the caller, who has a turn, has none."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def notify_all(self) -> None:
        """Wakes up whoever waits; the caller has a turn."""
        self._changed.notify_all()

    def _begin(self) -> None:
        self._device.follow(self._last)

    def _end(self) -> None:
        self._last = self._device.mark(self._at)
