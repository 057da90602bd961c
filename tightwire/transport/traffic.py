"""Whether this process's connections to other ranks move bytes: what the kernel tells of its TCP sockets.

A message that takes longer than a deadline keeps both its ranks waiting for each other, as ranks do that will wait for
ever. What tells them apart is whether bytes still move, or lie at the sender until the network takes them. Gloo
says neither; Linux does, for each socket (`struct tcp_info` in linux/tcp.h, SIOCOUTQ in tcp(7)). Other systems are not
asked: nothing is seen to move there.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import struct
import sys
import termios
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

CAN_TELL: Final = sys.platform.startswith("linux")
# Beats, and what a store is asked, move less between two looks.
LEAST_BYTES: Final = 4096
_MOVED_AT: Final = 120  # u64 tcpi_bytes_acked and u64 tcpi_bytes_received
_INFO_BYTES: Final = 136
_libc: Final = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Connection:
    """What the kernel tells of one TCP socket.

    Attributes:
        moved: bytes that the peer has acknowledged or that came, since it was opened.
        queued: bytes that the peer has not acknowledged, sent or not.
    """

    moved: int
    queued: int


@final
class Movement:
    """Looks now and then at the connections to some hosts, and knows when they last moved bytes.

    >>> now = [Connection(moved=0, queued=0)]
    >>> movement = Movement(lambda: {1: now[0]})
    >>> movement.look(0.0)
    >>> now[0] = Connection(moved=50_000, queued=0)
    >>> movement.look(1.0)
    >>> movement.moves(1.5, within_s=2), movement.is_still(1.5, for_s=2), movement.is_still(3.5, for_s=2)
    (True, False, True)
    """

    def __init__(self, connections: Callable[[], dict[int, Connection]], *, every_s: float = 0.4) -> None:
        """Keeps the source.

        Args:
            connections: the connections now, by a number that stays with each (its inode).
            every_s: the shortest time between two looks.
        """
        self._connections, self._every_s = connections, every_s
        self._before: dict[int, Connection] = {}
        self._first_s: float | None = None
        self._last_s = 0.0
        self._moved_s: float | None = None

    def look(self, now: float) -> None:
        """Looks, unless it did just now. Bytes that wait for the network count as moving: they will, or it breaks."""
        if self._first_s is not None and now - self._last_s < self._every_s:
            return
        after = self._connections()
        if self._first_s is None:
            self._first_s = now
        grown = sum(c.moved - self._before[key].moved for key, c in after.items() if key in self._before)
        if grown >= LEAST_BYTES or any(c.queued for c in after.values()):
            self._moved_s = now
        self._before, self._last_s = after, now

    def forget(self) -> None:
        """Forgets what was seen: nobody looks for a while."""
        self._before, self._first_s, self._moved_s = {}, None, None

    def moves(self, now: float, *, within_s: float) -> bool:
        """Returns whether bytes were seen to move in the last `within_s` seconds."""
        return self._moved_s is not None and now - self._moved_s < within_s

    def is_still(self, now: float, *, for_s: float) -> bool:
        """Returns whether it was looked for `for_s` seconds, and nothing moved in them."""
        since_s = self._first_s if self._moved_s is None else self._moved_s
        return since_s is not None and now - since_s >= for_s


def connections_to(hosts: Collection[str]) -> dict[int, Connection]:
    """Returns this process's TCP connections to some hosts, by inode; none where the system does not tell."""
    found: dict[int, Connection] = {}
    for entry in Path("/proc/self/fd").iterdir() if CAN_TELL else ():
        with suppress(OSError):  # closed meanwhile, or not connected
            descriptor = int(entry.name)
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode) and _peer(descriptor) in hosts:
                found[status.st_ino] = _connection(descriptor)
    return found


# By libc and the descriptor, for they are Gloo's sockets: one of Python's of the same descriptor would need a copy of
# it, and would make it non-blocking where the program has set a default timeout.


def _connection(descriptor: int) -> Connection:
    """Asks for bytes moved and queued.

    Raises:
        OSError: it is no TCP socket any more.
    """
    info, length = ctypes.create_string_buffer(_INFO_BYTES), ctypes.c_uint32(_INFO_BYTES)
    option = (socket.IPPROTO_TCP, socket.TCP_INFO)
    if _libc.getsockopt(descriptor, *option, info, ctypes.byref(length)) or length.value < _INFO_BYTES:
        raise OSError("no TCP socket, or an old kernel")
    queued = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0" * 4)
    return Connection(sum(struct.unpack_from("=QQ", info, _MOVED_AT)), struct.unpack("=i", queued)[0])


def _peer(descriptor: int) -> str:
    """Returns the address of the host that a socket is connected to; "" if it is to none."""
    address, length = ctypes.create_string_buffer(128), ctypes.c_uint32(128)
    if _libc.getpeername(descriptor, address, ctypes.byref(length)):
        return ""
    (family,) = struct.unpack_from("=H", address)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, address.raw[4:8])
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, address.raw[8:24]).removeprefix("::ffff:")
    return ""
