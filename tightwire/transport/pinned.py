"""Device memory over a transport that moves host memory: by pinned memory, in order with a device's streams.

A message crosses to the host when it is sent, and back when it has arrived; nothing else does. Programs send large
buffers in pieces, and each piece's copy is asked for on its own, so that copies and the wire overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from tightwire.devices import DEVICES, Device, Mark, device_named
from tightwire.transport.base import Transport, Work, check_message, check_summable
from tightwire.transport.wrapper import Wrapper

if TYPE_CHECKING:
    from torch import Tensor

# Of what a native all-reduce moves at a time: small enough to copy beside it, and for each rank large enough for the
# wire's rate, since it sends a part of a rank at a time.
CHUNK_BYTES, PART_BYTES = 1024 * 1024, 256 * 1024


@final
class Pinned(Wrapper):
    """Moves device memory by way of pinned memory, and host memory as it is.

    Contract: what was asked of the device by this thread, before a send, is in the message. A send blocks the host
    until the copy of its message is over; a receive, until the message is there, and its copy to the device is then
    asked for on this thread's stream.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.moves = inner.moves | frozenset(DEVICES)

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Copies the message to the host, and starts sending it."""
        device = device_named(tensor.device)
        if device.is_host or tensor.nbytes == 0:
            return self.inner.isend(tensor, dst, tag)
        check_message(self, tensor, dst)
        room = _room(device, tensor)
        device.copy(tensor.detach(), room)
        device.wait(device.mark(tensor.device))
        return _Sending(self.inner.isend(room, dst, tag), device, room)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Starts receiving into pinned memory; `wait` copies it to the device."""
        device = device_named(tensor.device)
        if device.is_host or tensor.nbytes == 0:
            return self.inner.irecv(tensor, src, tag)
        check_message(self, tensor, src)
        room = _room(device, tensor)
        return _Receiving(self.inner.irecv(room, src, tag), device, room, tensor.detach())

    def all_reduce(self, tensor: Tensor) -> Work:
        """Copies the tensor to the host chunk by chunk, and sums each by the inner transport's own algorithm."""
        device = device_named(tensor.device)
        if device.is_host or tensor.nbytes == 0:
            return self.inner.all_reduce(tensor)
        check_summable(self, tensor)
        return _Summing(self.inner, device, tensor.detach())

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Wraps a channel or a group."""
        return Pinned(child)


def chunk_bytes(ranks: int) -> int:
    """Returns how much of a native all-reduce among so many ranks is copied, and summed, at a time."""
    return max(CHUNK_BYTES, ranks * PART_BYTES)


def _room(device: Device, tensor: Tensor) -> Tensor:
    return device.pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape)


class _Sending:
    """A message on its way out of pinned memory."""

    def __init__(self, work: Work, device: Device, room: Tensor) -> None:
        self._work, self._device = work, device
        self._room: Tensor | None = room

    def wait(self) -> None:
        self._work.wait()
        self._give_back()

    def attend(self) -> bool:
        arrived = self._work.attend()
        if arrived:
            self._give_back()
        return arrived

    def _give_back(self) -> None:
        if self._room is not None:
            self._device.give_back(self._room)
            self._room = None


class _Receiving:
    """A message on its way into pinned memory, and from there to the device."""

    def __init__(self, work: Work, device: Device, room: Tensor, tensor: Tensor) -> None:
        self._work, self._device, self._tensor = work, device, tensor
        self._room: Tensor | None = room

    def wait(self) -> None:
        self._work.wait()
        self._take()

    def attend(self) -> bool:
        arrived = self._work.attend()
        if arrived:
            self._take()
        return arrived

    def _take(self) -> None:
        if self._room is not None:
            self._device.copy(self._room, self._tensor)
            self._device.give_back(self._room, self._device.mark(self._tensor.device))
            self._room = None


class _Summing:
    """A native sum in chunks: while one is on the wire, the next is copied to the host and the last one back."""

    def __init__(self, inner: Transport, device: Device, tensor: Tensor) -> None:
        self._inner, self._device, self._pending = inner, device, True
        # Chunks of which all ranks own equal parts, so that a sum in chunks sends what a whole one would.
        unit = inner.size * max(1, chunk_bytes(inner.size) // (inner.size * tensor.element_size()))
        self._chunks = list(tensor.view(-1).split(unit))
        self._rooms = [_room(device, chunk) for chunk in self._chunks]
        self._marks: list[Mark] = []
        for chunk, room in zip(self._chunks, self._rooms, strict=True):
            device.copy(chunk, room)
            self._marks.append(device.mark(tensor.device))

    def wait(self) -> None:
        if not self._pending:
            return
        self._pending = False
        under_way: list[Work] = []
        for i, (mark, room) in enumerate(zip(self._marks, self._rooms, strict=True)):
            self._device.wait(mark)
            under_way.append(self._inner.all_reduce(room))
            if i:
                self._deliver(i - 1, under_way[i - 1])
        self._deliver(len(self._rooms) - 1, under_way[-1])

    def attend(self) -> bool:
        self.wait()
        return True

    def _deliver(self, i: int, work: Work) -> None:
        work.wait()
        self._device.copy(self._rooms[i], self._chunks[i])
        self._device.give_back(self._rooms[i], self._device.mark(self._chunks[i].device))
