"""The transport contract: how bytes move between ranks."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Work(Protocol):
    """A transfer under way."""

    def wait(self) -> None:
        """Blocks until the tensor may be reused (send) or read (receive).

        Raises:
            PeerError: the deadline passed or the peer is gone; names the ranks to blame.
        """


class Transport(abc.ABC):
    """Moves tensors between `size` ranks; this object is rank `rank`.

    Point-to-point: messages between two ranks with one tag arrive in the order they were sent; different tags
    are independent. Tensors are contiguous and must stay untouched until their Work is waited for. Sizes agree
    on both sides. Collectives (`all_reduce`, `all_gather`, `exchange`, `barrier`, `channel`, `group`) are called
    by every rank in the same order on one transport object.

    Attributes:
        rank: this worker.
        size: number of workers.
        deadline_s: the longest that any wait lasts before it names whom it waits for.
        native_dtypes: torch dtype names that `all_reduce` can sum.
    """

    rank: int
    size: int
    deadline_s: float
    native_dtypes: frozenset[str]

    @abc.abstractmethod
    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Starts sending `tensor` (any dtype) to rank `dst`. 0 ≤ tag < 2³¹. Bytes sent: the tensor's."""

    @abc.abstractmethod
    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Starts receiving into `tensor` from rank `src`. Post receives before sends: full duplex needs it."""

    @abc.abstractmethod
    def all_reduce(self, tensor: Tensor) -> Work:
        """Starts summing `tensor` over all ranks, in place, by the backend's own algorithm.

        Contract: all ranks, same order, same size. Bytes sent per rank: `native_bytes(tensor's bytes)`.
        """

    @abc.abstractmethod
    def exchange(self, payload: bytes) -> list[bytes]:
        """Returns every rank's payload, by rank. For small control data of any size; blocks.

        Contract: all ranks, same order.
        """

    @abc.abstractmethod
    def channel(self) -> Transport:
        """Returns a transport over the same ranks with connections and tags of its own. All ranks, same order."""

    @abc.abstractmethod
    def group(self, ranks: Sequence[int]) -> Transport | None:
        """Returns a transport over some ranks, renumbered in the order given; None for ranks outside.

        Contract: called by ALL ranks with the same `ranks`, in the same order.
        """

    @abc.abstractmethod
    def barrier(self) -> None:
        """Blocks until every rank has called it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Gives back connections and threads; the transport is unusable afterwards. Local."""

    def broadcast(self, tensor: Tensor, src: int = 0) -> None:
        """Makes `tensor` on every rank a copy of rank `src`'s, in place; blocks. All ranks, same order."""
        _broadcast(self, tensor, src)


def native_bytes(num_bytes: int, size: int, itemsize: int, rank: int) -> int:
    """Returns the payload that `rank` sends in a native all-reduce of `num_bytes`, a ring by convention.

    A backend's own steps cannot be counted from outside; ring all-reduce is what Gloo and NCCL run for large
    buffers: each rank forwards every chunk but one in each of the two phases.
    """
    raise NotImplementedError


def _broadcast(transport: Transport, tensor: Tensor, src: int) -> None:
    raise NotImplementedError
