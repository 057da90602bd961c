"""A switch that adds: a process in the switch's own network namespace, with a pool of slots and no other memory.

It does what a programmable switch does (SwitchML, 1903.06701; ATP, NSDI 2021): adds integers chunk by chunk in a slot,
answers all workers when the last one's came, and frees the slot; a chunk that finds no slot is refused, and the workers
add it up themselves. Lost and reordered packets are TCP's work here: a switch in hardware speaks UDP, with timers and a
bitmap per slot at every worker; in a process of Python each datagram would cost more than what it carries.

Run as `python -m tightwire.lab.adder PORT SLOTS SLOT_BYTES`; prints the port once it listens.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tightwire.transport.adding import (
    ADD,
    GREETING,
    HEADER,
    HELLO,
    LARGEST,
    PING,
    PONG,
    REFUSED,
    SUM_BYTES,
    check_pool,
    padding,
)

_INTEGERS: dict[int, Any] = {1: np.int8, 4: np.int32}
_SUMS: dict[int, Any] = {1: np.int16, 4: np.int32}
_MOST_GATHERED = 32  # buffers in one call to the kernel


@dataclass
class _Open:
    """A chunk of which some workers' integers have come."""

    slot: int | None
    missing: int
    largest: int = 0


@dataclass
class _Job:
    """Workers that add with one another."""

    size: int
    members: dict[int, _Connection] = field(default_factory=dict)
    chunks: dict[tuple[int, int], _Open] = field(default_factory=dict)
    largests: dict[int, tuple[int, Any]] = field(default_factory=dict)


class _Connection:
    """A worker's line: bytes that came and are no whole message yet, and bytes that wait to leave."""

    def __init__(self, line: socket.socket, room: int) -> None:
        self.line = line
        self.room = memoryview(bytearray(room))
        self.filled = 0
        self.leaving: deque[memoryview] = deque()
        self.job: bytes | None = None
        self.rank = -1


class Adder:
    """The switch.

    Attributes:
        port: that it listens on.
        added: chunks that it added up.
        refused: chunks that found no slot.
        most_slots: that were in use at a time.
    """

    def __init__(self, slots: int, slot_bytes: int, *, host: str = "0.0.0.0", port: int = 0) -> None:
        """Listens.

        Args:
            slots: how many chunks may be under way at a time.
            slot_bytes: of each one's sums.
            host: address to listen on.
            port: 0: any that is free.

        Raises:
            TransportError: a switch without memory.
        """
        check_pool(slots, slot_bytes)
        self._slot_bytes = slot_bytes
        pool = np.zeros((slots, slot_bytes), np.uint8)
        # A slot as bytes, and as sums of integers of either size.
        self._pool = [memoryview(slot.data) for slot in pool]
        self._sums = {size: [slot.view(kind) for slot in pool] for size, kind in _SUMS.items()}
        self._free = list(range(slots))
        self._jobs: dict[bytes, _Job] = {}
        self._connections: dict[int, _Connection] = {}
        self._listener = socket.create_server((host, port))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._poll = select.epoll()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        self._closing, self._wake = socket.socketpair()
        self._poll.register(self._closing.fileno(), select.EPOLLIN)
        self.added = self.refused = self.most_slots = 0

    def serve(self) -> None:
        """Adds until `close` is called; blocks."""
        while True:
            for file, event in self._poll.poll():
                if file == self._closing.fileno():
                    self._end()
                    return
                if file == self._listener.fileno():
                    self._accept()
                elif connection := self._connections.get(file):
                    self._attend(connection, event)

    def close(self) -> None:
        """Ends `serve`, and with it all connections; from any thread."""
        self._wake.send(b"x")

    def _end(self) -> None:
        for connection in list(self._connections.values()):
            connection.line.close()
        for end in (self._listener, self._poll, self._closing, self._wake):
            end.close()

    def _accept(self) -> None:
        line, _ = self._listener.accept()
        line.setblocking(False)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[line.fileno()] = _Connection(line, 4 * (self._slot_bytes + HEADER.size))
        self._poll.register(line.fileno(), select.EPOLLIN)

    def _attend(self, connection: _Connection, event: int) -> None:
        try:
            if event & select.EPOLLOUT:
                self._flush(connection)
            if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._receive(connection)
        except (
            OSError,
            ValueError,
            KeyError,
            struct.error,
        ):  # the worker is gone, or speaks another language
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        """Ends a worker's line, and those of its job: what they wait for will never come."""
        if self._connections.pop(connection.line.fileno(), None) is None:
            return
        connection.line.close()
        job = self._jobs.pop(connection.job, None) if connection.job else None
        if job:
            self._free += [chunk.slot for chunk in job.chunks.values() if chunk.slot is not None]
            for other in job.members.values():
                self._drop(other)

    def _receive(self, connection: _Connection) -> None:
        try:
            received = connection.line.recv_into(connection.room[connection.filled :])
        except BlockingIOError:  # what was told was of a line before it, which had the same number
            return
        if received == 0:
            raise ConnectionResetError
        filled, start, room = connection.filled + received, 0, connection.room
        while filled - start >= HEADER.size:
            kind, itemsize, run, chunk, num_bytes, largest = HEADER.unpack_from(room, start)
            if num_bytes > self._slot_bytes:
                raise ValueError(f"{num_bytes} bytes do not fit a slot")
            stop = start + HEADER.size + num_bytes + padding(num_bytes)
            if stop > filled:
                break
            payload = room[start + HEADER.size : start + HEADER.size + num_bytes]
            self._take(connection, kind, itemsize, run, chunk, payload, largest)
            start = stop
        room[: filled - start] = room[start:filled]
        connection.filled = filled - start

    def _take(
        self,
        connection: _Connection,
        kind: int,
        itemsize: int,
        run: int,
        chunk: int,
        payload: memoryview,
        largest: int,
    ) -> None:
        if kind == HELLO:
            name, connection.rank, size = GREETING.unpack(payload)
            connection.job = name
            job = self._jobs.setdefault(name, _Job(size))
            job.members[connection.rank] = connection
            return
        job = self._jobs[connection.job] if connection.job in self._jobs else _Job(0)
        if len(job.members) > job.size or not job.size:
            raise ValueError("a worker of no job")
        if kind == PING:
            self._wait(connection, memoryview(HEADER.pack(PONG, 0, run, 0, 0, 0)))
        elif kind == LARGEST:
            self._compare(job, run, payload)
        elif kind == ADD:
            self._add(job, itemsize, run, chunk, payload, largest)
        else:
            raise ValueError(f"kind {kind}")

    def _compare(self, job: _Job, run: int, payload: memoryview) -> None:
        """Finds the largest magnitudes of the first chunks of a run."""
        told = np.frombuffer(payload, np.uint32)
        count, found = job.largests.get(run, (0, told))
        found = np.maximum(found, told)
        if count + 1 < job.size:
            job.largests[run] = count + 1, found
            return
        job.largests.pop(run, None)
        self._answer(job, HEADER.pack(LARGEST, 4, run, 0, found.nbytes, 0), found.tobytes())

    def _add(self, job: _Job, itemsize: int, run: int, chunk: int, payload: memoryview, largest: int) -> None:
        integers = np.frombuffer(payload, _INTEGERS[itemsize])
        sum_bytes = integers.size * SUM_BYTES[itemsize]
        under_way = job.chunks.get((run, chunk))
        is_first = under_way is None
        if under_way is None:
            fits = self._free and sum_bytes <= self._slot_bytes
            under_way = _Open(self._free.pop() if fits else None, job.size)
            job.chunks[run, chunk] = under_way
            self.most_slots = max(self.most_slots, len(self._pool) - len(self._free))
        under_way.missing -= 1
        under_way.largest = max(under_way.largest, largest)
        if under_way.slot is not None:
            sums = self._sums[itemsize][under_way.slot][: integers.size]
            if is_first:
                sums[:] = integers
            else:
                np.add(sums, integers, out=sums)
        if under_way.missing:
            return
        del job.chunks[run, chunk]
        if under_way.slot is None:
            self.refused += 1
            self._answer(job, HEADER.pack(REFUSED, itemsize, run, chunk, 0, under_way.largest))
            return
        self.added += 1
        sums = self._pool[under_way.slot][:sum_bytes]
        self._answer(job, HEADER.pack(ADD, itemsize, run, chunk, sum_bytes, under_way.largest), sums)
        self._free.append(under_way.slot)

    def _answer(self, job: _Job, header: bytes, payload: memoryview | bytes = b"") -> None:
        """Sends a message to all workers, straight from its slot; only what has to wait is copied, once for all."""
        parts = [header, payload, bytes(padding(len(payload)))]
        size, waiting = sum(map(len, parts)), None
        for member in list(job.members.values()):
            sent = 0 if member.leaving else self._sent(member, parts)
            if sent < size:
                waiting = memoryview(b"".join(parts)) if waiting is None else waiting
                self._wait(member, waiting[sent:])

    def _sent(self, connection: _Connection, parts: Sequence[memoryview | bytes]) -> int:
        """Returns how many bytes the kernel took."""
        try:
            return connection.line.sendmsg(parts)
        except OSError:
            return 0  # it is full; or gone, which is seen when it is read from

    def _wait(self, connection: _Connection, message: memoryview) -> None:
        if not connection.leaving:
            self._poll.modify(connection.line.fileno(), select.EPOLLIN | select.EPOLLOUT)
        connection.leaving.append(message)

    def _flush(self, connection: _Connection) -> None:
        leaving = connection.leaving
        while leaving:
            first = [leaving[i] for i in range(min(_MOST_GATHERED, len(leaving)))]
            try:
                sent = connection.line.sendmsg(first)
            except BlockingIOError:
                return
            while leaving and sent >= len(leaving[0]):
                sent -= len(leaving.popleft())
            if leaving:
                leaving[0] = leaving[0][sent:]
        self._poll.modify(connection.line.fileno(), select.EPOLLIN)


def main() -> None:
    """Serves until it is killed."""
    port, slots, slot_bytes = map(int, sys.argv[1:4])
    adder = Adder(slots, slot_bytes, port=port)
    # A switch does not wait for the hosts' processors. Where that is not allowed, it does.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    print(adder.port, flush=True)
    adder.serve()


if __name__ == "__main__":
    main()
