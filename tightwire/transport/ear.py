"""A process's datagram socket and the thread that listens to it, which no datagram and no error can end."""

from __future__ import annotations

import errno
import logging
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Final, Protocol, final

from tightwire.transport.addresses import Address, bind_datagram
from tightwire.transport.helpers import leave

MAX_DATAGRAM_BYTES: Final = 65_507
MOST_HEARD: Final = 1024  # at a time, so that a flood does not keep this process from looking after its waits

log = logging.getLogger("tightwire")


class Hearer(Protocol):
    """Who is told what the ear hears, on its thread."""

    def hear(self, data: bytes, sender: Address) -> None:
        """Takes a datagram, whatever it is."""

    def note_closed(self, address: Address) -> None:
        """Notes that nobody listens at an address any more."""

    def look(self) -> bool:
        """Does what is due; returns whether it wants to be called again soon."""


@final
class Ear:
    """Listens on one address of this host until it is closed.

    Attributes:
        address: where.
    """

    def __init__(self, host: str, *, tick_s: float, soon_s: float) -> None:
        """Takes a free port; `start` begins to listen.

        Args:
            host: an address of this host.
            tick_s: how often the hearer looks.
            soon_s: how often while it wants to.
        """
        self._tick_s, self._soon_s = tick_s, soon_s
        self._socket = bind_datagram(host)
        self.address: Final[Address] = (host, int(self._socket.getsockname()[1]))
        self._woken, self._waking = socket.socketpair()  # sockets that are closed write to no other's file
        self._waking.setblocking(False)
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, hearer: Hearer) -> None:
        """Begins to listen."""
        self._thread = threading.Thread(
            target=self._run, args=(hearer,), name="tightwire liveness", daemon=True
        )
        self._thread.start()

    def wake(self) -> None:
        """Has the hearer look at once."""
        with suppress(OSError):
            self._waking.send(b"!")

    def send(self, data: bytes, address: Address) -> None:
        """Sends a datagram, which may be lost."""
        for _ in range(2):  # the first may only report what became of an earlier one
            with suppress(OSError):
                self._socket.sendto(data, address)
                return

    def catch_up(self, hearer: Hearer) -> None:
        """Tells what the kernel has learnt of closed ports, and all that lies ready, before anything is judged.

        Whoever ends says so first; a process that was stopped finds there that the others gave it up. By then their
        ports are closed, and one would take them for dead. On the thread that listens.
        """
        self._tell_closed_ports(hearer)
        for _ in range(MOST_HEARD):
            try:
                data, sender = self._socket.recvfrom(MAX_DATAGRAM_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # what became of an earlier one
                continue
            hearer.hear(data, (sender[0], sender[1]))

    def close(self) -> None:
        """Ends the thread; waits for it for a second, for one inside Gloo at exit would abort the process."""
        self._closed = True
        self.wake()
        if self._thread is None:
            self._close_sockets()
        elif self._thread is not threading.current_thread():
            leave(self._thread, after_s=1.0)

    def _close_sockets(self) -> None:
        for one in (self._socket, self._woken, self._waking):
            one.close()

    def _run(self, hearer: Hearer) -> None:
        due_s = time.monotonic()
        while not self._closed:
            try:
                if self._listen(hearer, max(0.0, due_s - time.monotonic())) or time.monotonic() >= due_s:
                    due_s = time.monotonic() + (self._soon_s if hearer.look() else self._tick_s)
            except Exception:  # whatever it is: a thread that ended would make this rank look dead
                log.exception("listening for other ranks failed; it goes on")
                due_s = time.monotonic() + self._tick_s
        self._close_sockets()

    def _listen(self, hearer: Hearer, timeout_s: float) -> bool:
        """Takes what has come, if anything comes in time; returns whether the thread was woken."""
        poll = select.poll()  # unlike select, it takes any number of open files
        for one in (self._socket, self._woken):
            poll.register(one, select.POLLIN)
        ready = {file for file, _ in poll.poll(1000 * timeout_s)}
        if self._socket.fileno() in ready:
            self.catch_up(hearer)
        is_woken = self._woken.fileno() in ready
        if is_woken:
            self._woken.recv(4096)
        return is_woken

    def _tell_closed_ports(self, hearer: Hearer) -> None:
        """Tells of whom the kernel has learnt that nobody listens there; it does so on Linux."""
        if not hasattr(socket, "MSG_ERRQUEUE"):
            return
        with suppress(OSError):
            while True:
                flags = socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
                _, extra, _, address = self._socket.recvmsg(64, 512, flags)
                refused = [data for _, _, data in extra if _is_refusal(data)]
                if refused and address:
                    hearer.note_closed((address[0], address[1]))


def _is_refusal(data: bytes) -> bool:
    """Whether a `sock_extended_err` says that a port is closed."""
    return len(data) >= 4 and struct.unpack_from("=I", data)[0] == errno.ECONNREFUSED
