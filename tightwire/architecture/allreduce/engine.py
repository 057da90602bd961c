"""Moves the pieces of one rank's part over a transport, in the order that the part gives them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tightwire.architecture.allreduce.buffers import Buffers
from tightwire.architecture.allreduce.part import Part, Send
from tightwire.architecture.allreduce.traffic import RECEIVES_AHEAD
from tightwire.transport.base import Transport, Work


class Running(Protocol):
    """What moves one rank's part."""

    def run(self, work: Tensor, mean: Tensor, seed: int) -> None:
        """Moves all pieces once; see `Runner.run`."""


class GroupRunner:
    """Moves a part in groups that each start and end together, for transports where order replaces tags.

    A group is one step's pieces of one place in their chunks; see `Part.groups`. Nothing here waits on the host: a
    device's stream waits for a group before what follows it.
    """

    def __init__(self, part: Part, transport: Transport, buffers: Buffers) -> None:
        self._groups, self._transport, self._buffers = part.groups(), transport, buffers

    @staticmethod
    def slots(part: Part) -> int:
        """Returns how many pieces may have landed and not be taken in."""
        return max((len(receives) for _, receives in part.groups()), default=0)

    def run(self, work: Tensor, mean: Tensor, seed: int) -> None:
        """Moves all pieces once; see `Runner.run`."""
        buffers, transport = self._buffers, self._transport
        buffers.begin(work, mean, seed)
        for sends, receives in self._groups:
            leaving = [(buffers.outgoing(send), send) for send in sends]
            works = [
                transport.irecv(buffers.landing(receive, slot), receive.src, receive.tag)
                for slot, receive in enumerate(receives)
            ]
            works += [transport.isend(tensor, send.dst, send.tag) for tensor, send in leaving]
            for under_way in works:
                under_way.wait()
            for slot, receive in enumerate(receives):
                buffers.arrived(receive, slot)
        buffers.finish()


def part_runner(part: Part, transport: Transport, buffers: Buffers, num_pieces: int, kind: str) -> Running:
    """Returns what moves a part whose buffers are on a kind of device."""
    if kind in transport.ordered:
        return GroupRunner(part, transport, buffers)
    return PartRunner(part, transport, buffers, num_pieces)


def slots_for(part: Part, transport: Transport, kind: str) -> int:
    """Returns how many landing slots that needs."""
    if kind in transport.ordered:
        return GroupRunner.slots(part)
    return min(RECEIVES_AHEAD, len(part.receives))


class PartRunner:
    """Moves the pieces of one part: receives posted before sends, and always some receives ahead.

    A send leaves as soon as the arrival that it depends on is taken in, so the reduction of a piece overlaps
    the transfer of the following ones, within a step and across steps.
    """

    def __init__(self, part: Part, transport: Transport, buffers: Buffers, num_pieces: int) -> None:
        self._part, self._transport, self._buffers = part, transport, buffers
        self._sends_of: list[list[Work]] = [[] for _ in range(num_pieces)]

    def run(self, work: Tensor, mean: Tensor, seed: int) -> None:
        """Moves all pieces once; see `Runner.run`."""
        buffers, receives = self._buffers, self._part.receives
        buffers.begin(work, mean, seed)
        under_way = [self._post(i) for i in range(min(RECEIVES_AHEAD, len(receives)))]
        for send in self._part.first:
            self._send(send)
        for i, receive in enumerate(receives):
            under_way[i % RECEIVES_AHEAD].wait()
            if receive.op == "reduce":
                self._settle(receive.piece)
                buffers.arrived(receive, i % RECEIVES_AHEAD)
            for send in receive.then:
                self._send(send)
            if receive.op == "copy":  # forwarded before it is decoded
                buffers.arrived(receive, i % RECEIVES_AHEAD)
            if i + RECEIVES_AHEAD < len(receives):
                under_way[i % RECEIVES_AHEAD] = self._post(i + RECEIVES_AHEAD)
        for piece in range(len(self._sends_of)):
            self._settle(piece)
        buffers.finish()

    def _post(self, i: int) -> Work:
        receive = self._part.receives[i]
        tensor = self._buffers.landing(receive, i % RECEIVES_AHEAD)
        return self._transport.irecv(tensor, receive.src, receive.tag)

    def _send(self, send: Send) -> None:
        work = self._transport.isend(self._buffers.outgoing(send), send.dst, send.tag)
        self._sends_of[send.piece].append(work)

    def _settle(self, piece: int) -> None:
        """Waits until what was sent of a piece is taken, so that it may change."""
        for work in self._sends_of[piece]:
            work.wait()
        self._sends_of[piece].clear()
