"""Some ranks of a transport, over its own connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, final

from tightwire.errors import TransportError
from tightwire.transport.base import Transport, Watch, Work, check_group, check_message
from tightwire.transport.blame import Wait

if TYPE_CHECKING:
    from torch import Tensor


@final
class Subset(Transport):
    """A view of some ranks, renumbered: sends and receives go by the transport beneath, and share its tags.

    Unlike a group it needs nobody's consent, opens no connection, and has no collectives of the backend's own.
    """

    native_dtypes = frozenset[str]()

    def __init__(self, inner: Transport, ranks: Sequence[int]) -> None:
        """Makes the view.

        Args:
            inner: whose ranks; this one among `ranks`.
            ranks: in the order in which they are numbered here.

        Raises:
            TransportError: ranks that are none, or without this one.
        """
        check_group(inner, ranks)
        if inner.rank not in ranks:
            raise TransportError(
                f"rank {inner.rank} asked for a view of ranks {list(ranks)}, where it is not."
            )
        self._inner, self._ranks = inner, tuple(ranks)
        self.rank, self.size = self._ranks.index(inner.rank), len(self._ranks)
        self.deadline_s, self.late_s = inner.deadline_s, inner.late_s
        self.moves, self.ordered = inner.moves, inner.ordered

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Sends beneath."""
        check_message(self, tensor, dst)
        return self._inner.isend(tensor, self._ranks[dst], tag)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Receives beneath."""
        check_message(self, tensor, src)
        return self._inner.irecv(tensor, self._ranks[src], tag)

    def all_reduce(self, tensor: Tensor) -> Work:
        """Refuses: the backend sums over all ranks."""
        self._refuse("all-reduce")

    def exchange(self, payload: bytes) -> list[bytes]:
        """Refuses."""
        self._refuse("exchange")

    def channel(self) -> Transport:
        """Refuses."""
        self._refuse("open a channel")

    def group(self, ranks: Sequence[int]) -> Transport | None:
        """Refuses."""
        self._refuse("make a group")

    def barrier(self) -> None:
        """Refuses."""
        self._refuse("meet at a barrier")

    def watch(self, wait: Wait, *, ends_run: bool = False, is_first: bool = False) -> Watch:
        """Watches beneath."""
        return self._inner.watch(wait.numbered(self._ranks), ends_run=ends_run, is_first=is_first)

    def fail(self, error: BaseException) -> None:
        """Tells all ranks beneath."""
        self._inner.fail(error)

    def announce(self, number: int) -> None:
        """Asks the transport beneath."""
        self._inner.announce(number)

    def announced(self, rank: int) -> int:
        """Asks the transport beneath."""
        return self._inner.announced(self._ranks[rank])

    def give_up(self, rank: int) -> None:
        """Asks the transport beneath."""
        self._inner.give_up(self._ranks[rank])

    def close(self) -> None:
        """Does nothing: the connections are the inner transport's."""

    def _refuse(self, verb: str) -> NoReturn:
        raise TransportError(
            f"asked to {verb} on a view of {self.size} ranks, which only sends and receives: make a group of them."
        )
