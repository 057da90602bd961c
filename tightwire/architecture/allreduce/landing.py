"""Where pieces land before they are taken in: memory that all runners over one transport have in turn."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from tightwire.architecture.allreduce.traffic import ALIGN_BYTES
from tightwire.devices import Mark, device_named
from tightwire.transport import Transport

# A transport is a lane: one runner at a time moves over it, and needs this memory only meanwhile.
_rooms: weakref.WeakKeyDictionary[Transport, LandingRoom] = weakref.WeakKeyDictionary()


class _Free(NamedTuple):
    """A block that nobody receives into at present.

    Attributes:
        block: (bytes,) uint8.
        mark: what was asked of it last; None: nothing yet.
        thread: that asked, whose next work comes after that by itself.
    """

    block: Tensor
    mark: Mark | None
    thread: int


@final
class LandingRoom:
    """Blocks of memory that nobody receives into at present."""

    def __init__(self) -> None:
        self._free: list[_Free] = []
        self._lock = threading.Lock()

    def reserve(self, num_bytes: int, at: torch.device) -> None:
        """Makes sure that one block is free which is large enough; smaller ones are given back to torch.

        The host waits for what still reads those: torch would hand them out again by the stream that asked for them.
        """
        with self._lock:
            if any(free.block.numel() >= num_bytes and free.block.device == at for free in self._free):
                return
            smaller = [free for free in self._free if free.block.device == at]
            # Whatever the allocator gave this memory for before comes before any bucket is filled, which lanes follow.
            made = _Free(torch.empty(num_bytes, dtype=torch.uint8, device=at), None, threading.get_ident())
            self._free = [free for free in self._free if free.block.device != at] + [made]
        for free in smaller:
            if free.mark is not None:
                device_named(at).wait(free.mark)

    def take(self, num_bytes: int, at: torch.device) -> Tensor:
        """Returns a block, (num_bytes,) uint8 or more, which this thread's stream may write."""
        with self._lock:
            fits = (f for f in self._free if f.block.numel() >= num_bytes and f.block.device == at)
            if (found := next(fits, None)) is not None:
                self._free = [free for free in self._free if free is not found]
        if found is None:
            # Two runners are under way, or one failed: its receives may still write into what it had.
            return torch.empty(num_bytes, dtype=torch.uint8, device=at)
        if found.mark is not None and found.thread != threading.get_ident():
            device_named(at).follow(found.mark)
        return found.block

    def put(self, block: Tensor) -> None:
        """Takes a block back, once this thread's stream is done with it."""
        mark = device_named(block.device).mark(block.device)
        with self._lock:
            self._free.append(_Free(block, mark, threading.get_ident()))


@final
class Slots:
    """The slots of one runner, of equal size; there from `begin` to `end`."""

    def __init__(self, transport: Transport, count: int, slot_bytes: int, at: torch.device) -> None:
        """Reserves them among those of all runners over the transport."""
        self._room = _rooms.setdefault(transport, LandingRoom())
        self._stride = -(-slot_bytes // ALIGN_BYTES) * ALIGN_BYTES
        self._num_bytes, self._count, self._at = count * self._stride, count, at
        self._block: Tensor | None = None
        self._views: Sequence[Tensor] = ()
        if self._num_bytes:
            self._room.reserve(self._num_bytes, at)

    def begin(self) -> None:
        """Takes them; what a failed run had stays its own."""
        if not self._num_bytes:
            return
        block = self._room.take(self._num_bytes, self._at)
        if block is not self._block:
            self._block = block
            self._views = block[: self._num_bytes].split(self._stride)

    def end(self) -> None:
        """Gives them back."""
        if self._num_bytes and self._block is not None:
            self._room.put(self._block)

    def __getitem__(self, slot: int) -> Tensor:
        """Returns a slot: uint8, where any dtype may begin."""
        return self._views[slot]
