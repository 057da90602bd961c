"""A loopback of a trial's own, as slow as a network: faults then fall into the middle of messages."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tightwire.lab.keeper import CLONE_NEWNET, enter

RATE_BITS_PER_S: Final = 400_000_000  # all workers of a trial share it
SETUP: Final = (
    "ip link set lo mtu 1500 up",
    f"tc qdisc add dev lo root tbf rate {RATE_BITS_PER_S}bit burst 16kb limit 2mb",
)


@contextmanager
def slow_loopback() -> Iterator[bool]:
    """Gives this thread, and processes that it starts within the block, a network namespace with a slow loopback.

    Yields:
        Whether it could: where this process may make none (it takes root, and `tc`), messages are as fast as ever.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if libc.unshare(CLONE_NEWNET):
        os.close(before)
        yield False
        return
    try:
        yield all(_succeeds(command) for command in SETUP)
    finally:
        enter(before)
        os.close(before)


def _succeeds(command: str) -> bool:
    try:
        return subprocess.run(command.split(), capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
