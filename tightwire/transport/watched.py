"""Calls of libraries that only other ranks can end, looked after by a transport that knows who is to blame."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from tightwire.errors import TightwireError, TransportError
from tightwire.transport.base import Transport
from tightwire.transport.blame import Wait, name_ranks
from tightwire.transport.helpers import leave

Result = TypeVar("Result")

LOOK_S: Final = 0.25
# How often, after an error that a library tells, a peer may still be found dead.
LOOKS: Final = 16


def watched(transport: Transport, call: Callable[[], Result], wait: Wait, *, hint: str) -> Result:
    """Returns what a call returns that only the ranks awaited can end; it is made on a thread that can be left behind.

    Args:
        transport: over those ranks; it looks after the wait.
        call: of a library, before anything of the awaited is under way; it may never return.
        wait: for whom, as the transport numbers them, and for what.
        hint: what to do where the library fails, and all are alive.

    Raises:
        PeerError: one of them is gone, or late beyond `late_s`.
        TransportError: the library failed, and nobody is gone.
    """
    found: list[Result] = []
    failed: list[BaseException] = []
    has_ended = threading.Event()

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)
        has_ended.set()

    thread = threading.Thread(target=work, name="tightwire calls", daemon=True)
    watch = transport.watch(wait, ends_run=True, is_first=True)
    try:
        thread.start()
        while not has_ended.wait(LOOK_S):
            watch.check()
    except BaseException:
        leave(thread)
        raise
    finally:
        watch.close()
    if not failed:
        return found[0]
    if isinstance(failed[0], TightwireError) or not isinstance(failed[0], RuntimeError):
        raise failed[0]
    require_alive(transport, wait)
    raise TransportError(
        f"this worker waited {wait.what}, and that failed though {name_ranks(sorted(wait.peers))} "
        f"{'is' if len(wait.peers) == 1 else 'are'} alive: {str(failed[0]).rstrip('. ')}. {hint}"
    ) from failed[0]


def require_alive(transport: Transport, wait: Wait, pause: Callable[[float], object] = time.sleep) -> None:
    """Makes sure that nobody awaited is found gone within seconds of an error that may come of it.

    Args:
        transport: that looks for them.
        wait: for whom, as the transport numbers them, and for what.
        pause: waits for so many seconds.

    Raises:
        PeerError: names who is.
    """
    watch = transport.watch(wait, ends_run=True, is_first=True)
    try:
        for _ in range(LOOKS):
            watch.check()
            pause(LOOK_S)
    finally:
        watch.close()
