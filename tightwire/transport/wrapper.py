"""What every transport wrapper forwards."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tightwire.transport.base import Transport, Watch, Work
from tightwire.transport.blame import Wait

if TYPE_CHECKING:
    from torch import Tensor


class Wrapper(Transport):
    """A transport around another: forwards everything but what it adds to, and wraps children alike."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.rank = inner.rank
        self.size = inner.size
        self.deadline_s, self.late_s = inner.deadline_s, inner.late_s
        self.native_dtypes = inner.native_dtypes
        self.moves, self.ordered = inner.moves, inner.ordered

    @abc.abstractmethod
    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Returns a channel or a group of `inner` in a wrapper of the same kind; `ranks` are this one's."""

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Forwards."""
        return self.inner.isend(tensor, dst, tag)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Forwards."""
        return self.inner.irecv(tensor, src, tag)

    def all_reduce(self, tensor: Tensor) -> Work:
        """Forwards."""
        return self.inner.all_reduce(tensor)

    def exchange(self, payload: bytes) -> list[bytes]:
        """Forwards."""
        return self.inner.exchange(payload)

    def channel(self) -> Transport:
        """Wraps a channel of the inner transport."""
        return self.wrap(self.inner.channel(), range(self.size))

    def group(self, ranks: Sequence[int]) -> Transport | None:
        """Wraps a group of the inner transport."""
        child = self.inner.group(ranks)
        return None if child is None else self.wrap(child, ranks)

    def barrier(self) -> None:
        """Forwards."""
        self.inner.barrier()

    def watch(self, wait: Wait, *, ends_run: bool = False, is_first: bool = False) -> Watch:
        """Forwards."""
        return self.inner.watch(wait, ends_run=ends_run, is_first=is_first)

    def fail(self, error: BaseException) -> None:
        """Forwards."""
        self.inner.fail(error)

    def announce(self, number: int) -> None:
        """Forwards."""
        self.inner.announce(number)

    def announced(self, rank: int) -> int:
        """Forwards."""
        return self.inner.announced(rank)

    def give_up(self, rank: int) -> None:
        """Forwards."""
        self.inner.give_up(rank)

    def count_sent(self, num_bytes: int) -> None:
        """Forwards."""
        self.inner.count_sent(num_bytes)

    def require_sound(self) -> None:
        """Forwards."""
        self.inner.require_sound()

    def close(self) -> None:
        """Closes the inner transport."""
        self.inner.close()
