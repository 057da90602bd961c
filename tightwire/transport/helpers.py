"""Threads that make calls which may never return, so that whoever waits for one can give it up."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import final

Task = Callable[[], None]


class _OfThread(threading.local):
    is_expendable = False


_here = _OfThread()


@contextlib.contextmanager
def expendable() -> Iterator[None]:
    """Within it, calls that may never return are made on this thread: whoever waits for the thread can give it up."""
    _here.is_expendable = True
    try:
        yield
    finally:
        _here.is_expendable = False


def is_expendable() -> bool:
    """Whether this thread may make calls that never return."""
    return _here.is_expendable


@final
class Helpers:
    """As many threads as there are calls under way; a thread whose call never returns is left behind."""

    def __init__(self, name: str) -> None:
        """Starts none yet; `name` is theirs."""
        self._name = name
        self._idle: list[queue.SimpleQueue[Task]] = []

    def run(self, call: Callable[[], bool], is_given_up: Callable[[], bool]) -> bool:
        """Returns `call()`, made on another thread; False soon after `is_given_up()`.

        `call` raises nothing.
        """
        result: list[bool] = []
        ended = threading.Lock()
        ended.acquire()

        def task() -> None:
            result.append(call())
            ended.release()

        tasks = self._take()
        tasks.put(task)
        while not ended.acquire(timeout=_LOOK_S):
            if is_given_up():
                return False
        self._idle.append(tasks)
        return result[0]

    def _take(self) -> queue.SimpleQueue[Task]:
        try:
            return self._idle.pop()
        except IndexError:
            tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(tasks,), name=self._name, daemon=True).start()
            return tasks


_LOOK_S = 0.25


def _serve(tasks: queue.SimpleQueue[Task]) -> None:
    while True:
        tasks.get()()
