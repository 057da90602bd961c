"""Buffers that are made equal whenever workers agree, as DDP does before every pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from torch import Tensor

from tightwire.runtime.agreement import copy_from
from tightwire.transport import Counting


class BufferSync:
    """Copies buffers from the lowest rank that trains, once for every round that all members share.

    A worker that trains copies when its step is over; one that is finished, when it has taken part in the round.

    Attributes:
        transport: counts what is sent; over the members.
    """

    def __init__(self, transport: Counting, buffers: Callable[[], Mapping[str, Tensor]]) -> None:
        self.transport = transport
        self._buffers = buffers
        self._rounds: deque[int] = deque()

    def note(self, present: int) -> None:
        """Takes in a round, in which so many trained."""
        self._rounds.append(present)

    def settle(self, *, trains: bool) -> None:
        """Makes buffers equal for all rounds noted. Every member; blocks."""
        while self._rounds:
            source = 0
            if self._rounds.popleft() < self.transport.size:  # somebody is finished, perhaps rank 0
                source = self.transport.exchange(bytes([trains])).index(b"\x01")
            self.copy(source)

    def copy(self, source: int) -> None:
        """Makes buffers equal to one rank's. Every member; blocks."""
        copy_from(self.transport, self._buffers().values(), source)
