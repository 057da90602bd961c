"""A thread that does one thing after another, and does not keep the interpreter from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from tightwire.transport.helpers import leave

Result = TypeVar("Result")


class Background:
    """Makes calls on a daemon thread, in order. Unlike an executor's, it is not waited for when the program ends."""

    def __init__(self, name: str) -> None:
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Has `call` made after all before it; the future holds what it returns or raises."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # whatever it is, the waiting thread must learn of it
                future.set_exception(error)

        self._todo.put(run)
        return future

    def close(self) -> None:
        """Ends the thread after what was submitted, and waits for a second: nothing of it is to come later."""
        self._todo.put(None)
        leave(self._thread, after_s=1.0)

    def _serve(self) -> None:
        while (call := self._todo.get()) is not None:
            call()
