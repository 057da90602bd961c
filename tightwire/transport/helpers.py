"""Threads that make calls which may never return, so that whoever waits for one can give it up."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Final, final

Task = Callable[[], bool]  # returns whether its thread goes on

_LOOK_S: Final = 0.25
# Threads that are left behind often end in milliseconds; at exit they are waited for so long, all together.
_ENDING_S: Final = 0.2
_left: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


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


def leave(thread: threading.Thread, *, after_s: float = 0.0) -> None:
    """Leaves a thread behind in a call of native code: the program may end before the call does.

    Args:
        thread: that was started.
        after_s: so long it is waited for first.
    """
    thread.join(after_s)
    _left.add(thread)


@atexit.register
def _let_the_program_end() -> None:
    """Keeps threads that are left behind from aborting a program that ends.

    While it ends, Python before 3.14 ends any thread that comes back from native code by `pthread_exit`; C++ takes that
    for an exception in a destructor, and calls `std::terminate`. There such a thread sleeps instead, until the process
    is gone; the main thread aborts as ever.

    Source: docs.python.org/3.14/c-api/init.html, "Cautions regarding runtime finalization".
    """
    until_s = time.monotonic() + _ENDING_S
    for thread in tuple(_left):
        thread.join(max(0.0, until_s - time.monotonic()))
    if any(thread.is_alive() for thread in _left):
        with contextlib.suppress(AttributeError, OSError):  # another system has no such library
            _have_threads_sleep_where_c_aborts()


def _have_threads_sleep_where_c_aborts() -> None:
    from numba import cfunc  # the handler runs without Python, and so without its lock

    libc = ctypes.CDLL(None)
    pause, own = libc.pause, libc.pthread_self
    pause.argtypes, own.argtypes, own.restype = (), (), ctypes.c_ulong
    main = own() if threading.current_thread() is threading.main_thread() else 0

    def sleep() -> None:
        while own() != main:
            pause()

    handler = cfunc("void()")(sleep)
    _kept.append(handler)
    ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(ctypes.c_void_p(handler.address))


_kept: Final[list[object]] = []  # for as long as the process lives


@final
class Helpers:
    """As many threads as there are calls under way; a thread whose call never returns is left behind."""

    def __init__(self, name: str) -> None:
        """Starts none yet; `name` is theirs."""
        self._name = name
        self._idle: list[_Helper] = []

    def run(self, call: Callable[[], bool], is_given_up: Callable[[], bool]) -> bool:
        """Returns `call()`, made on another thread; False soon after `is_given_up()`.

        `call` raises nothing.
        """
        result: list[bool] = []
        ended = threading.Lock()
        ended.acquire()

        def task() -> bool:
            result.append(call())
            ended.release()
            return True

        helper = self._take()
        helper.tasks.put(task)
        while not ended.acquire(timeout=_LOOK_S):
            if is_given_up():
                helper.tasks.put(lambda: False)  # should the call return after all
                leave(helper)
                return False
        self._idle.append(helper)
        return result[0]

    def _take(self) -> _Helper:
        try:
            return self._idle.pop()
        except IndexError:
            return _Helper(self._name)


@final
class _Helper(threading.Thread):
    """A thread that does one task after another.

    Attributes:
        tasks: that it has yet to do.
    """

    def __init__(self, name: str) -> None:
        """Starts."""
        super().__init__(name=name, daemon=True)
        self.tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        """Does them until one says that it was the last."""
        while self.tasks.get()():
            pass
