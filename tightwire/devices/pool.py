"""Pinned host memory that is handed out again and again: making it costs more than a copy does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.multiprocessing.reductions import StorageWeakRef

    from tightwire.devices.device import Mark

SMALLEST_BYTES = 4096


class PinnedPool:
    """Blocks of host memory by size, a power of two; a block is handed out once the last copy behind it is over.

    One that is never given back, as of a message that did not arrive, is its holder's alone, and ends with it.
    """

    def __init__(self, make: Callable[[int], Tensor], wait: Callable[[Mark], None]) -> None:
        """Keeps how memory is made, from its size in bytes, and how the host waits for a mark."""
        self._make, self._wait = make, wait
        self._free: dict[int, list[tuple[Tensor, Mark | None]]] = {}
        self._made: list[tuple[StorageWeakRef, int]] = []
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes that exist, handed out or not."""
        with self._lock:
            self._made = [(block, size) for block, size in self._made if not block.expired()]
            return sum(size for _, size in self._made)

    def take(self, num_bytes: int) -> Tensor:
        """Returns (num_bytes,) uint8; blocks only where the oldest free block still has a copy behind it."""
        size = max(SMALLEST_BYTES, 1 << max(num_bytes - 1, 0).bit_length())
        with self._lock:
            waiting = self._free.setdefault(size, [])
            found = waiting.pop(0) if waiting else None
        if found is None:
            from torch.multiprocessing.reductions import StorageWeakRef

            block = self._make(size)
            with self._lock:
                self._made.append((StorageWeakRef(block.untyped_storage()), size))
        else:
            block, after = found
            if after is not None:
                self._wait(after)
        return block[:num_bytes]

    def put(self, memory: Tensor, after: Mark | None) -> None:
        """Takes a block back."""
        import torch

        block = torch.empty(0, dtype=torch.uint8).set_(memory.untyped_storage())
        with self._lock:
            self._free[block.numel()].append((block, after))
