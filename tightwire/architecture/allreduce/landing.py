"""Where pieces land before they are taken in: memory that all runners over one transport have in turn."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from tightwire.architecture.allreduce.traffic import ALIGN_BYTES
from tightwire.devices import Mark, device_named
from tightwire.transport import Transport

# A transport is a lane: one runner at a time moves over it, and needs this memory only meanwhile.
_rooms: weakref.WeakKeyDictionary[Transport, LandingRoom] = weakref.WeakKeyDictionary()


@final
class LandingRoom:
    """Blocks of memory that nobody receives into at present."""

    def __init__(self) -> None:
        self._free: list[tuple[Tensor, Mark]] = []
        self._lock = threading.Lock()

    def reserve(self, num_bytes: int, at: torch.device) -> None:
        """Makes sure that one block is free which is large enough; smaller ones are given back to torch.

        The host waits for what still reads those: torch would hand them out again by the stream that asked for them.
        """
        with self._lock:
            if any(block.numel() >= num_bytes and block.device == at for block, _ in self._free):
                return
            smaller, self._free = self._free, [entry for entry in self._free if entry[0].device != at]
        for block, mark in smaller:
            if block.device == at:
                device_named(at).wait(mark)
        del smaller
        self.put(torch.empty(num_bytes, dtype=torch.uint8, device=at))

    def take(self, num_bytes: int, at: torch.device) -> Tensor:
        """Returns a block, (num_bytes,) uint8 or more, which this thread's stream may write."""
        with self._lock:
            for i, (block, _) in enumerate(self._free):
                if block.numel() >= num_bytes and block.device == at:
                    block, mark = self._free.pop(i)
                    break
            else:  # two runners are under way, or one failed, and its receives may still write into what it had
                return torch.empty(num_bytes, dtype=torch.uint8, device=at)
        device_named(at).follow(mark)
        return block

    def put(self, block: Tensor) -> None:
        """Takes a block back, once this thread's stream is done with it."""
        mark = device_named(block.device).mark(block.device)
        with self._lock:
            self._free.append((block, mark))


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
