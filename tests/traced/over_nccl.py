"""NCCL on the traced device: groups move what is in memory when their stream comes to it, and streams wait for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.traced.training import TRACED
from tests.transport.fake_nccl import Group, Hub, Hubs
from tightwire.devices.traced import KIND
from tightwire.devices.traced.streams import Stream, StreamEvent
from tightwire.transport import Transport
from tightwire.transport.nccl import Nccl
from tightwire.transport.reach import NearAndFar


class Parcels(Hub):
    """Tells receivers which message is theirs; the bytes follow by the streams of the two ranks."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.sent: dict[int, StreamEvent] = {}  # by the address of the message's copy
        self.met: dict[int, Tensor] = {}  # by the address of the receiver's slot

    def deliver(self, source: Tensor, target: Tensor) -> None:
        self.met[target.data_ptr()] = source


class TracedLaunched:
    def __init__(self, ended: Sequence[StreamEvent], index: int) -> None:
        self._ended, self._index = ended, index

    def wait(self) -> None:
        if TRACED.omits("follow"):
            return
        for event in self._ended:
            TRACED.scheduler.follow(TRACED.scheduler.current(self._index), event)

    def is_completed(self) -> bool:
        return all(event.stream.done >= event.number for event in self._ended)


class TracedCommunicator:
    """One rank's end of a hub. What a group sends and what it receives go beside each other, as in NCCL's kernel."""

    def __init__(self, hub: Parcels, rank: int, at: torch.device) -> None:
        self._hub, self._rank, self._index = hub, rank, at.index or 0
        self._sending, self._receiving = (TRACED.scheduler.stream(f"NCCL of rank {rank}") for _ in range(2))

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]
    ) -> TracedLaunched:
        self._begin()
        group = Group()
        for tensor, dst in sends:
            group.sends.setdefault(dst, []).append(self._send(tensor))
        slots = [torch.empty(tensor.nbytes, dtype=torch.uint8) for tensor, _ in receives]
        for slot, (_, src) in zip(slots, receives, strict=True):
            group.receives.setdefault(src, []).append(slot)
        self._hub.run(self._rank, group)
        for slot, (tensor, _) in zip(slots, receives, strict=True):
            if slot.numel():
                self._receive([self._hub.met.pop(slot.data_ptr())], tensor)
        return self._launched()

    def all_reduce(self, tensor: Tensor) -> TracedLaunched:
        self._begin()
        parts = self._hub.meet_all(self._rank, self._send(tensor))
        self._receive(parts, tensor)
        return self._launched()

    def fault(self) -> str:
        return ""

    def abort(self) -> None:
        self._hub.leave(self._rank)

    def _begin(self) -> None:
        """Has both streams begin after what this thread asked for, and after the group before."""
        for stream in (self._sending, self._receiving):
            for event in (self._record(TRACED.scheduler.current(self._index)), *self._ends()):
                TRACED.scheduler.follow(stream, event)

    def _ends(self) -> list[StreamEvent]:
        return [self._record(stream) for stream in (self._sending, self._receiving)]

    def _launched(self) -> TracedLaunched:
        return TracedLaunched(self._ends(), self._index)

    def _record(self, stream: Stream) -> StreamEvent:
        return TRACED.scheduler.record(stream)

    def _send(self, tensor: Tensor) -> Tensor:
        """Returns where the message will be once this rank's stream has read it."""
        copy = torch.empty(tensor.shape, dtype=tensor.dtype)
        source = TRACED.on_host(tensor)
        TRACED.scheduler.ask(
            self._sending, lambda: _copy(source, copy), TRACED.spans(tensor), [], "an NCCL send"
        )
        self._hub.sent[copy.data_ptr()] = self._record(self._sending)
        return copy

    def _receive(self, parts: Sequence[Tensor], tensor: Tensor) -> None:
        """Has this rank's stream fill memory with a message, or with the sum of several."""
        for part in parts:
            TRACED.scheduler.follow(self._receiving, self._hub.sent[part.data_ptr()])
        target = TRACED.on_host(tensor)

        def fill() -> None:
            total = functools.reduce(torch.add, parts)
            _copy(total.view(target.dtype).view(target.shape), target)

        TRACED.scheduler.ask(self._receiving, fill, [], TRACED.spans(tensor), "an NCCL receive")


def _copy(source: Tensor, target: Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


class TracedHubs(Hubs):
    """The communicators of a world on the traced device."""

    def connect(self, transport: Transport, name: str, at: torch.device) -> TracedCommunicator:  # type: ignore[override]
        return TracedCommunicator(self.hub(name, transport.size, Parcels), transport.rank, at)


def nccl() -> Callable[[Transport], Transport]:
    """Returns what wraps the transports of one world."""
    hubs = TracedHubs()
    return lambda transport: Nccl(transport, hubs.connect, kind=KIND)


def nccl_inside(per_node: int) -> Callable[[Transport], Transport]:
    """As `nccl`, within nodes; pinned memory goes across."""
    hubs = TracedHubs()

    def reach(transport: Transport) -> Transport:
        name = str(transport.rank // per_node)
        return NearAndFar.of(
            transport, per_node, lambda node: Nccl(node, hubs.connect, kind=KIND, name=name), KIND
        )

    return reach
