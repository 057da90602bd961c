"""A lane of buckets with a line to a switch that adds beside it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

from tightwire.errors import TransportError
from tightwire.transport.adding import (
    ADD,
    GREETING,
    HEADER,
    HELLO,
    LARGEST,
    PING,
    REFUSED,
    SwitchAddress,
    padding,
)
from tightwire.transport.base import Transport
from tightwire.transport.blame import Wait
from tightwire.transport.wrapper import Wrapper

logger = logging.getLogger(__name__)

CONNECT_S = 10.0
# How long nothing comes before who is to blame is looked for, and before the switch is asked whether it lives ...
LOOK_S = 0.5
# ... and how long it may take to answer: it does nothing but move memory.
ANSWER_S = 5.0
# Messages that wait for the kernel: enough to keep the line busy while others are encoded.
_MOST_LEAVING = 4
_ROOM_MESSAGES = 4
WORD_BYTES = 4  # of a largest magnitude


class Chunks(Protocol):
    """The chunks of a bucket, as a line moves them.

    Attributes:
        count: how many.
        itemsize: bytes of an integer that leaves.
    """

    count: int
    itemsize: int

    def largest(self, chunk: int) -> int:
        """Returns the bits of the largest magnitude of a chunk, of which nothing was sent yet."""

    def integers(self, chunk: int, largest: int) -> memoryview:
        """Returns a chunk as integers, as bytes, given the largest magnitude of all workers'."""

    def take(self, chunk: int, largest: int, sums: memoryview) -> None:
        """Takes in the sums of all workers' integers of a chunk."""


@dataclass
class SwitchAccount:
    """What a switch did for this worker.

    Attributes:
        added: chunks that the switch added up.
        refused: chunks that found no slot, and that the hosts added.
        taken_over: chunks that the hosts added because the switch was lost.
        lost: why the switch is not used any more; empty while it is.
    """

    added: int = 0
    refused: int = 0
    taken_over: int = 0
    lost: str = ""

    def __str__(self) -> str:
        parts = [f"{self.added:,} chunks added by the switch"]
        if self.refused:
            parts.append(f"{self.refused:,} by the hosts for want of a free slot")
        if self.taken_over:
            parts.append(f"{self.taken_over:,} by the hosts after the switch was lost: {self.lost}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Switch:
    """A switch that adds, and what it did for this worker on all lanes."""

    address: SwitchAddress
    account: SwitchAccount = field(default_factory=SwitchAccount, compare=False)


@final
class Switched(Wrapper):
    """A transport between the hosts, and the switch that they all have a line to.

    Attributes:
        switch: where it is, and what it did.
        line: to it; None once it is lost.
    """

    def __init__(self, inner: Transport, switch: Switch, line: SwitchLine | None) -> None:
        super().__init__(inner)
        self.switch, self.line = switch, line

    def lose(self, why: str) -> None:
        """Goes on without the switch."""
        if self.line is not None:
            self.line.close()
            self.line = None
        if not self.switch.account.lost:
            self.switch.account.lost = why
            logger.warning("the switch that adds is not used any more: %s. The hosts add.", why)

    def channel(self) -> Transport:
        """Returns a lane with a line of its own."""
        return connect(self.inner, self.switch)

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Returns the child as it is: other ranks are another job, and have no line."""
        return child

    def close(self) -> None:
        """Closes the line and the lane."""
        if self.line is not None:
            self.line.close()
            self.line = None
        super().close()


def connect(transport: Transport, switch: Switch) -> Switched:
    """Opens a channel, and a line to the switch beside it.

    Contract: all ranks, same order.

    Raises:
        TransportError: some rank cannot reach the switch; the same on all.
    """
    lane = transport.channel()
    token = lane.exchange(os.urandom(16) if lane.rank == 0 else b"")[0]
    line, trouble = None, ""
    try:
        line = SwitchLine(switch.address, token, lane.rank, lane.size)
    except OSError as error:
        trouble = f"{type(error).__name__}: {error}"
    told = lane.exchange(trouble.encode())
    if any(told):
        if line is not None:
            line.close()
        rank = next(rank for rank, text in enumerate(told) if text)
        raise TransportError(
            f"rank {rank} cannot reach the switch at {switch.address}: {told[rank].decode()}. Is it up? In the lab: "
            "tightwire lab run --switch adds …"
        )
    return Switched(lane, switch, line)


@final
class SwitchLine:
    """One lane's connection to the switch.

    Attributes:
        address: of the switch.
        window: chunks that may be under way. All ranks see the same refusals, and so have the same window: half of it
            after a run with refusals, for others use the pool too, and one more after a run without.
    """

    def __init__(self, address: SwitchAddress, job: bytes, rank: int, size: int) -> None:
        """Connects.

        Args:
            address: of the switch.
            job: 16 bytes that the ranks of a lane share.
            rank: this worker.
            size: workers.

        Raises:
            OSError: it does not answer.
        """
        # What is agreed before a run's first chunks is one message, of a word each, and no longer than a slot.
        self._widest = min(address.slots, address.slot_bytes // WORD_BYTES)
        self.address, self.window = address, self._widest
        self._line = socket.create_connection((address.host, address.port), timeout=CONNECT_S)
        self._line.setblocking(False)
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll = select.poll()
        self._poll.register(self._line.fileno(), select.POLLIN)
        self._room = memoryview(bytearray(_ROOM_MESSAGES * (address.slot_bytes + HEADER.size)))
        self._filled = 0
        self._leaving: deque[memoryview] = deque()
        self._runs = 0
        self._asked_s = self._heard_s = 0.0
        self._put(HELLO, 0, 0, memoryview(GREETING.pack(job, rank, size)))

    def run(self, chunks: Chunks, transport: Transport) -> Streamed:
        """Has all chunks added up, some at a time.

        Contract: every rank, in the same order; blocks.

        Args:
            chunks: of a bucket.
            transport: between the ranks, which knows who is to blame where nothing comes.

        Returns:
            What was added, and what was refused.

        Raises:
            PeerError: a rank did not take part within the deadline.
        """
        self._runs = (self._runs + 1) % 2**32
        found = Streamed(window=min(self.window, chunks.count))
        peers = frozenset(range(transport.size)) - {transport.rank}
        watch = transport.watch(
            Wait(peers, "for the switch to add their chunks and this rank's"), ends_run=True
        )
        try:
            self._stream(chunks, found, watch.check)
            self.window = max(1, self.window // 2) if found.refused else min(self._widest, self.window + 1)
        except OSError as error:
            found.lost = f"{type(error).__name__}: {error}"
        finally:
            watch.close()
        return found

    def close(self) -> None:
        """Hangs up."""
        with contextlib.suppress(OSError):
            self._line.close()

    def _stream(self, chunks: Chunks, found: Streamed, check: Callable[[], None]) -> None:
        largests = b"".join(chunks.largest(i).to_bytes(WORD_BYTES, "little") for i in range(found.window))
        self._put(LARGEST, 4, 0, memoryview(largests))
        self._heard_s = time.monotonic()
        self._asked_s = 0.0
        upcoming = 0
        while found.num_answered < chunks.count:
            while upcoming < chunks.count and upcoming in found.agreed and len(self._leaving) < _MOST_LEAVING:
                payload = chunks.integers(upcoming, found.agreed[upcoming])
                ahead = upcoming + found.window
                largest = chunks.largest(ahead) if ahead < chunks.count else 0
                self._put(ADD, chunks.itemsize, upcoming, payload, largest)
                upcoming += 1
            wants = select.POLLIN | (select.POLLOUT if self._leaving else 0)
            self._poll.modify(self._line.fileno(), wants)
            events = self._poll.poll(1000 * LOOK_S)
            if not events:
                self._look(check)
                continue
            if events[0][1] & select.POLLOUT:
                self._flush()
            if events[0][1] & ~select.POLLOUT:
                self._receive(chunks, found)

    def _look(self, check: Callable[[], None]) -> None:
        """Blames a rank, or asks the switch whether it lives, or gives it up."""
        check()
        now_s = time.monotonic()
        if self._asked_s > self._heard_s:
            if now_s - self._asked_s > ANSWER_S:
                raise SwitchSilentError(f"it did not answer for {ANSWER_S:g} s")
        else:
            self._asked_s = now_s
            self._put(PING, 0, 0, memoryview(b""))

    def _put(self, kind: int, itemsize: int, chunk: int, payload: memoryview, largest: int = 0) -> None:
        header = HEADER.pack(kind, itemsize, self._runs, chunk, len(payload), largest)
        self._leaving.append(memoryview(header))
        if len(payload):
            self._leaving.append(payload)
        if rest := padding(len(payload)):
            self._leaving.append(memoryview(bytes(rest)))
        self._flush()

    def _flush(self) -> None:
        leaving = self._leaving
        while leaving:
            try:
                sent = self._line.sendmsg(leaving)
            except BlockingIOError:
                return
            while leaving and sent >= len(leaving[0]):
                sent -= len(leaving.popleft())
            if leaving:
                leaving[0] = leaving[0][sent:]

    def _receive(self, chunks: Chunks, found: Streamed) -> None:
        received = self._line.recv_into(self._room[self._filled :])
        if received == 0:
            raise ConnectionResetError("it closed the connection")
        self._heard_s = time.monotonic()
        filled, start, room = self._filled + received, 0, self._room
        while filled - start >= HEADER.size:
            kind, _, run, chunk, num_bytes, largest = HEADER.unpack_from(room, start)
            stop = start + HEADER.size + num_bytes + padding(num_bytes)
            if stop > filled:
                break
            payload = room[start + HEADER.size : start + HEADER.size + num_bytes]
            if run == self._runs:
                self._take(chunks, found, kind, chunk, largest, payload)
            start = stop
        room[: filled - start] = room[start:filled]
        self._filled = filled - start

    def _take(
        self, chunks: Chunks, found: Streamed, kind: int, chunk: int, largest: int, payload: memoryview
    ) -> None:
        if kind == LARGEST:
            found.agreed |= dict(enumerate(payload.cast("I")))
            return
        if kind not in (ADD, REFUSED):
            return
        if chunk + found.window < chunks.count:
            found.agreed[chunk + found.window] = largest
        if kind == ADD:
            chunks.take(chunk, found.agreed[chunk], payload)
            found.added.add(chunk)
        else:
            found.refused.add(chunk)


@dataclass
class Streamed:
    """What came of a run.

    Attributes:
        window: chunks that were under way.
        agreed: the largest magnitude of a chunk, as bits, of those that were agreed.
        added: chunks whose sums came.
        refused: chunks that found no slot, the same on all ranks unless the switch was lost.
        lost: why the switch was lost; empty if it was not.
    """

    window: int
    agreed: dict[int, int] = field(default_factory=dict)
    added: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    lost: str = ""

    @property
    def num_answered(self) -> int:
        """Chunks of which the switch said what became."""
        return len(self.added) + len(self.refused)


class SwitchSilentError(OSError):
    """The switch does not answer."""
