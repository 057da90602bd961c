"""Buffers that are made equal whenever workers agree, as DDP does before every pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from torch import Tensor

from tightwire.runtime.agreement import copy_from
from tightwire.runtime.membership import Called, Membership
from tightwire.transport import Counting, Transport


class BufferSync:
    """Copies buffers from the lowest rank that trains, once for every round that all members share.

    A worker that trains copies when its step is over, never within a pass, which may still need them; one that is
    finished, when it has taken part in the round. Who trained in a round may still be on its way then, and is waited
    for: else one worker would copy now and another a step later.

    Attributes:
        transport: counts what is sent; over the members.
    """

    def __init__(self, transport: Transport, buffers: Callable[[], Mapping[str, Tensor]]) -> None:
        """Takes in no rounds yet; see `follow`.

        Args:
            transport: over the members.
            buffers: returns those that are kept in step, by name.
        """
        self.transport = Counting(transport)
        self._buffers = buffers
        self._rounds: deque[tuple[Future[Called], bool]] = deque()

    @property
    def are_due(self) -> bool:
        """Whether a round was noted for which nothing was copied yet."""
        return bool(self._rounds)

    def follow(self, membership: Membership) -> None:
        """Copies with every round of which a membership hears from now on."""
        membership.hear, membership.settle, membership.conclude = self.note, self.settle, self.copy

    def move(self, transport: Transport) -> None:
        """Goes on among other members; rounds among those before are forgotten."""
        self.transport = Counting(transport, tally=self.transport.tally)
        self._rounds.clear()

    def note(self, told: Future[Called], trains: bool) -> None:
        """Takes in a round that begins, and whether this worker trains in it."""
        self._rounds.append((told, trains))

    def settle(self) -> None:
        """Makes buffers equal for all rounds noted. Every member; blocks."""
        while self._rounds:
            told, trains = self._rounds.popleft()
            present = told.result().present
            if present == self.transport.size:
                self.copy(0)
            elif present:  # somebody is finished, perhaps rank 0
                self.copy(self.transport.exchange(bytes([trains])).index(b"\x01"))

    def copy(self, source: int) -> None:
        """Makes buffers equal to one rank's. Every member; blocks."""
        copy_from(self.transport, self._buffers().values(), source)
