"""The process that an emulated cluster lives in. Run as a script, it imports the standard library only.

It makes network namespaces and holds each by an open file, never by a name in the file system, so that they
vanish with it. As the first process of its process namespace it takes every worker with it when it ends; as a
guard, which has no namespace, it kills the process groups that it was told of. It ends when its standard input
does: when whoever started it closes the lab, or dies, in whatever way.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TextIO

CLONE_NEWNET = 0x40000000
MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
MS_BIND = 4096


def main() -> None:
    """Makes as many network namespaces as the first argument says, prints their file numbers, and waits.

    The second argument is what the workers see at the end of /etc/hosts.
    """
    count = int(sys.argv[1])
    if count:
        mount("proc", "/proc", "proc", MS_NOSUID_NODEV_NOEXEC)
        name_hosts(sys.argv[2])
        # Orphans of the workers become children of this process; ignoring them lets the kernel reap them.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(*[new_network() for _ in range(count)], flush=True)
    guard(sys.stdin)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    """Mounts for this mount namespace alone, where that is allowed.

    Both mounts are comforts, and hardened containers forbid them: without its own /proc a worker finds itself
    under /proc/self only; without names for the addresses PyTorch warns that it cannot look them up.
    """
    ctypes.CDLL(None).mount(source.encode(), target.encode(), kind.encode(), flags, None)


def name_hosts(text: str) -> None:
    """Adds to /etc/hosts by laying a file over it, which has no name of its own that could stay behind."""
    with suppress(OSError):
        text = Path("/etc/hosts").read_text() + text
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        Path(file.name).chmod(0o644)
        mount(file.name, "/etc/hosts", "none", MS_BIND)


def new_network() -> int:
    """Makes a network namespace, without IPv6 on its links, and returns the open file that holds it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}")
    # IPv6 announces itself and looks for routers: bytes on the links that no worker sent.
    with suppress(OSError):
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def enter(namespace: int) -> None:
    """Has this thread, and what it starts from now on, enter a namespace, given by an open file.

    Raises:
        OSError: it may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"a namespace cannot be entered: {os.strerror(error)}")


def guard(orders: TextIO) -> None:
    """Reads `+GROUP` and `-GROUP` until the end, then kills the process groups that are still guarded."""
    groups: set[int] = set()
    for order in orders:
        group = int(order[1:])
        groups.add(group) if order[0] == "+" else groups.discard(group)
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
