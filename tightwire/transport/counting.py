"""Counts what a rank sends: the other half of "predicted bytes == bytes counted"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from tightwire.transport.base import Transport, Work, native_bytes
from tightwire.transport.wrapper import Wrapper

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Tally:
    """What one rank sent, over a transport and all its channels and groups.

    Attributes:
        bytes_sent: payload of sends, and `native_bytes` of each native all-reduce.
        messages: number of sends; a native all-reduce counts as one.
        control_bytes: payload of `exchange`, once for each other rank; not part of `bytes_sent`.
        bytes_to: payload of sends for each destination, as the counted transport numbers it.
    """

    bytes_sent: int = 0
    messages: int = 0
    control_bytes: int = 0
    bytes_to: Counter[int] = field(default_factory=Counter)

    def clear(self) -> None:
        """Starts again from zero."""
        self.bytes_sent = self.messages = self.control_bytes = 0
        self.bytes_to.clear()


@final
class Counting(Wrapper):
    """A transport that counts its own payload bytes in `tally`; channels and groups add to the same tally.

    Attributes:
        tally: what this rank sent so far.
    """

    def __init__(
        self, inner: Transport, *, tally: Tally | None = None, ranks: Sequence[int] | None = None
    ) -> None:
        super().__init__(inner)
        self.tally = tally if tally is not None else Tally()
        self._ranks = tuple(range(inner.size)) if ranks is None else tuple(ranks)

    @property
    def bytes_sent(self) -> int:
        """Payload bytes sent so far, `exchange` and `barrier` left out."""
        return self.tally.bytes_sent

    @property
    def messages(self) -> int:
        """Messages sent so far."""
        return self.tally.messages

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Sends, and counts the tensor's bytes once the transport took it."""
        work = self.inner.isend(tensor, dst, tag)
        self._count(tensor.nbytes)
        self.tally.bytes_to[self._ranks[dst]] += tensor.nbytes
        return work

    def all_reduce(self, tensor: Tensor) -> Work:
        """Sums, and counts by convention (`native_bytes`)."""
        work = self.inner.all_reduce(tensor)
        self._count(native_bytes(tensor.numel(), tensor.element_size(), self.size, self.rank))
        return work

    def exchange(self, payload: bytes) -> list[bytes]:
        """Exchanges, and counts the payload as control bytes."""
        self.tally.control_bytes += len(payload) * (self.size - 1)
        return self.inner.exchange(payload)

    def count_sent(self, num_bytes: int) -> None:
        """Counts what went beside the transport as one message."""
        self._count(num_bytes)

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Counts a channel or a group in the same tally."""
        return Counting(child, tally=self.tally, ranks=[self._ranks[r] for r in ranks])

    def _count(self, num_bytes: int) -> None:
        self.tally.bytes_sent += num_bytes
        self.tally.messages += 1
