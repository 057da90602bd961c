"""The next world of an elastic job, connected on a thread while its members still train in the present one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import final

from tightwire.transport.helpers import leave
from tightwire.transport.torch_distributed import TorchDistributed

log = logging.getLogger("tightwire")


@dataclass(frozen=True)
class ConnectedWorld:
    """A world that came about: the number of its quorum, its members by rank, and what is between them."""

    number: int
    names: tuple[str, ...]
    transport: TorchDistributed


@final
class NextWorld:
    """At most one, replaced when members change again. Every method is local."""

    def __init__(self, connect: Callable[[], ConnectedWorld | None]) -> None:
        """Takes what asks for a world and connects it, on a thread; it blocks for seconds at most."""
        self._connect = connect
        self._lock = threading.Lock()
        self._is_allowed = False
        self._found: Future[ConnectedWorld | None] | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether it is being connected."""
        found = self._found
        return found is not None and not found.done()

    @property
    def names(self) -> tuple[str, ...] | None:
        """Its members; None while it is not connected."""
        found = self._found
        world = found.result() if found is not None and found.done() else None
        return None if world is None else world.names

    def allow(self) -> None:
        """Lets `begin` have an effect: this worker is in a world."""
        self._is_allowed = True

    def begin(self) -> None:
        """Begins to connect it, in the place of the one that there is; nothing while one is being connected."""
        with self._lock:
            if not self._is_allowed or self.is_under_way:
                return
            before, self._found = self._found, Future()
            self._thread = threading.Thread(
                target=self._run, args=(self._found,), name="tightwire connects", daemon=True
            )
            self._thread.start()
        _close_later(before)

    def take(self) -> ConnectedWorld | None:
        """Returns it if it is connected; else leaves it. No other is begun until `allow`."""
        found = self._forbid()
        if found is not None and found.done():
            return found.result()
        _close_later(found)
        return None

    def drop(self, wait_s: float) -> None:
        """Leaves it; waits so long for the thread: one in native code aborts an interpreter that ends."""
        found = self._forbid()
        _close_later(found)
        if self._thread is not None:
            leave(self._thread, after_s=wait_s)

    def _forbid(self) -> Future[ConnectedWorld | None] | None:
        with self._lock:
            self._is_allowed, found, self._found = False, self._found, None
        return found

    def _run(self, found: Future[ConnectedWorld | None]) -> None:
        world = None
        try:
            world = self._connect()
        except Exception as error:  # whoever enters tries again, and says what is wrong
            log.info("the next world is not connected yet: %s", error)
        found.set_result(world)


def _close_later(found: Future[ConnectedWorld | None] | None) -> None:
    """Closes a world, as soon as it is connected."""
    if found is not None:
        found.add_done_callback(_close)


def _close(found: Future[ConnectedWorld | None]) -> None:
    if (world := found.result()) is not None:
        world.transport.close()
