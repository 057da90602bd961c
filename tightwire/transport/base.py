"""The transport contract: how bytes move between ranks."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tightwire.errors import TransportError
from tightwire.transport.blame import Wait

if TYPE_CHECKING:
    from torch import Tensor

BROADCAST_TAG = 2**31 - 1


class Work(Protocol):
    """A transfer under way."""

    def wait(self) -> None:
        """Blocks until the tensor may be reused (send) or read (receive).

        Raises:
            PeerError: the deadline passed or the peer is gone; names the ranks to blame.
        """

    def attend(self) -> bool:
        """Blocks like `wait`, but however long it takes, and blames nobody: for who serves many and waits for none.

        Returns:
            True once the transfer is complete; False if it never will be: the peer died, left, or was silent for
            `deadline_s`, or this channel was closed. Transfers with other peers go on either way.
        """


class Done:
    """A transfer that is complete already."""

    def wait(self) -> None:
        """Returns at once."""

    def attend(self) -> bool:
        """Returns True at once."""
        return True


DONE = Done()


class Watch(Protocol):
    """A wait that is made outside a transport, which looks after it."""

    def check(self) -> None:
        """Returns at once, unless somebody is to blame.

        Raises:
            PeerError: a rank that the wait depends on has ended the run, or is late beyond `late_s`.
        """

    def close(self) -> None:
        """Ends the watch."""


class Transport(abc.ABC):
    """Moves tensors between `size` ranks; this object is rank `rank`.

    Point-to-point: messages between two ranks with one tag arrive in the order they were sent, into the
    receives in the order they were posted; different tags are independent. Tensors are contiguous and must
    stay untouched until their Work is waited for. Sizes agree on both sides. Collectives (`all_reduce`,
    `exchange`, `broadcast`, `barrier`, `channel`, `group`) are called by every rank in the same order on one
    transport object.

    Every failure to move bytes is a PeerError that names the ranks to blame as the *world* numbers them, also
    on a group; after it the transport and all its channels are unusable.

    Attributes:
        rank: this worker.
        size: number of workers.
        deadline_s: the longest that a rank may be silent while it is waited for.
        late_s: the longest that a rank may be waited for that is alive; a warning names it after `deadline_s`.
        native_dtypes: torch dtype names, as in "float32", that `all_reduce` can sum.
        moves: types of devices, as in "cpu", whose memory it moves.
        ordered: types of devices whose messages have no tags: the order in which both sides ask for them replaces
            those. What is asked for between two waits then starts together, and must be able to end together.
    """

    rank: int
    size: int
    deadline_s: float
    late_s: float
    native_dtypes: frozenset[str]
    moves: frozenset[str] = frozenset({"cpu"})
    ordered: frozenset[str] = frozenset()

    @abc.abstractmethod
    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Starts sending `tensor` (any dtype) to rank `dst`. Bytes sent: the tensor's.

        Args:
            tensor: contiguous, of any size including 0.
            dst: another rank.
            tag: 0 ≤ tag < 2³¹ − 1 (the last one is `broadcast`'s).

        Raises:
            TransportError: `dst` is this rank or no rank, or the tensor is not contiguous.
        """

    @abc.abstractmethod
    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Starts receiving into `tensor` from rank `src`. Post receives before sends: full duplex needs it.

        Raises:
            TransportError: as for `isend`.
        """

    @abc.abstractmethod
    def all_reduce(self, tensor: Tensor) -> Work:
        """Starts summing `tensor` over all ranks, in place, by the backend's own algorithm.

        Contract: all ranks, same order, same size; the result is the same bits on every rank.
        Bytes sent by rank r: `native_bytes(numel, itemsize, size, r)`, by convention.

        Raises:
            TransportError: the dtype is not among `native_dtypes`.
        """

    @abc.abstractmethod
    def exchange(self, payload: bytes) -> list[bytes]:
        """Returns every rank's payload, by rank. For small control data of any size; blocks.

        Contract: all ranks, same order.
        """

    @abc.abstractmethod
    def channel(self) -> Transport:
        """Returns a transport over the same ranks with connections and tags of its own.

        Contract: all ranks, same order.
        """

    @abc.abstractmethod
    def group(self, ranks: Sequence[int]) -> Transport | None:
        """Returns a transport over some ranks, renumbered in the order given; None for ranks outside.

        Contract: called by ALL ranks with the same `ranks`, in the same order.
        """

    @abc.abstractmethod
    def barrier(self) -> None:
        """Blocks until every rank has called it."""

    @abc.abstractmethod
    def watch(self, wait: Wait, *, ends_run: bool = False, is_first: bool = False) -> Watch:
        """Looks after a wait that is made elsewhere, as for a thread that attends; local. See `Watch`.

        Args:
            wait: for ranks as this transport numbers them; whom it blames, it names as the world does.
            ends_run: whether a rank that is gone ends the wait, as where a device waits for all; else it does not, for
                `attend` then returns False.
            is_first: whether nothing of the awaited can be under way, so that one that is gone is named at once, and
                not by the deadline.
        """

    @abc.abstractmethod
    def fail(self, error: BaseException) -> None:
        """Tells all ranks why what runs here has failed, before its channels close.

        Contract: local; blocks only where the error is that of a connection which torch.distributed lost in one of its
        own collectives, which names nobody: then it is found who is to blame, and nobody hears that this rank failed.

        Raises:
            PeerError: the error is one of those; names who is to blame.
        """

    @abc.abstractmethod
    def announce(self, number: int) -> None:
        """Tells all ranks a number, in place of the one before, beside all messages; local. At first it is 0."""

    @abc.abstractmethod
    def announced(self, rank: int) -> int:
        """Returns the number that `rank` told last, as far as it is known here; local."""

    @abc.abstractmethod
    def give_up(self, rank: int) -> None:
        """Ends all that attends to `rank` on this channel, now and later, which is then incomplete for good; local."""

    def count_sent(self, num_bytes: int) -> None:
        """Notes payload that this rank sent beside the transport, as to a switch, for whoever counts; local."""
        return

    def require_sound(self) -> None:  # noqa: B027
        """Makes sure that what was moved behind the host's back has arrived, or still can; local.

        Raises:
            PeerError: what became of it, where a device was left waiting for a rank that did not come.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Gives back connections and threads; the transport is unusable afterwards. Local.

        Peers that still wait for this rank are told at once that it left.
        """

    def broadcast(self, tensor: Tensor, src: int = 0) -> None:
        """Makes `tensor` on every rank a copy of rank `src`'s, in place; blocks. All ranks, same order.

        A binomial tree: ⌈log₂ size⌉ rounds; a rank sends the tensor once to each of its children.
        """
        children, parent = tree_edges(self.rank, self.size, src)
        if parent is not None:
            self.irecv(tensor, parent, BROADCAST_TAG).wait()
        for work in [self.isend(tensor, child, BROADCAST_TAG) for child in children]:
            work.wait()


def native_bytes(numel: int, itemsize: int, size: int, rank: int) -> int:
    """Returns the payload bytes that `rank` sends in a native all-reduce, a ring by convention.

    A backend's own steps cannot be counted from outside; ring all-reduce is what Gloo and NCCL run for large
    buffers: of `size` nearly equal chunks rank r forwards all but chunk r, whose sum it completes, in the first
    phase, and all but the next one in the second: the bytes of `collectives.builders.ring`.

    Args:
        numel: elements in the buffer.
        itemsize: bytes per element.
        size: number of ranks.
        rank: whose bytes.
    """
    if size == 1:
        return 0
    kept = sum(numel * (c + 1) // size - numel * c // size for c in (rank, (rank + 1) % size))
    return (2 * numel - kept) * itemsize


def tree_edges(rank: int, size: int, root: int) -> tuple[list[int], int | None]:
    """Returns the children, largest subtree first, and the parent of `rank` in `root`'s binomial tree."""
    place = (rank - root) % size
    lowest_bit = place & -place if place else 1 << max(size - 1, 1).bit_length()
    parent = (place - lowest_bit + root) % size if place else None
    hops = [1 << k for k in reversed(range(lowest_bit.bit_length() - 1))]
    return [(place + hop + root) % size for hop in hops if place + hop < size], parent


def check_message(transport: Transport, tensor: Tensor, peer: int) -> None:
    """Refuses a message that no transport can carry.

    Raises:
        TransportError: `peer` is this rank or no rank, or the tensor is not contiguous.
    """
    if peer == transport.rank or not 0 <= peer < transport.size:
        raise TransportError(
            f"rank {transport.rank} of {transport.size} was asked to exchange a message with rank {peer}; "
            f"a peer is another rank between 0 and {transport.size - 1}"
        )
    if not tensor.is_contiguous():
        raise TransportError(
            f"asked to move a tensor of shape {tuple(tensor.shape)} with strides {tensor.stride()}; "
            "only contiguous memory travels: call .contiguous() first"
        )


def check_summable(transport: Transport, tensor: Tensor) -> None:
    """Refuses an all-reduce of a dtype that the backend cannot sum.

    Raises:
        TransportError: names the dtype and those that can be summed.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in transport.native_dtypes:
        raise TransportError(
            f"asked to all-reduce {name}; this transport sums {', '.join(sorted(transport.native_dtypes))}: "
            "cast, or use a program of sends and receives"
        )


def check_group(transport: Transport, ranks: Sequence[int]) -> None:
    """Refuses a group that is empty, has a rank twice, or reaches outside the transport.

    Raises:
        TransportError: names the offending list.
    """
    if not ranks or len(set(ranks)) != len(ranks) or not all(0 <= r < transport.size for r in ranks):
        raise TransportError(
            f"asked for a group of ranks {list(ranks)}; a group is one or more different ranks between 0 "
            f"and {transport.size - 1}"
        )
