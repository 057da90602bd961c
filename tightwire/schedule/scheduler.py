"""The schedule contract: which tensors travel together, in which pieces, and which piece moves next.

Pure logic. A scheduler owns no clock, thread or socket: it receives events and answers what to move next. The
runtime drives it with real events, the simulator drives the same object with virtual ones.

Agreement. A collective that some ranks begin with one piece and others with another, each waiting for room, never
ends; so an order must not depend on what is ready on one rank. Here every rank starts pieces in the order of one
`Agenda`, which follows from what all ranks know. That cannot deadlock, whenever gradients become ready: take the
first piece in that order which some rank has not finished. All before it are finished everywhere, and nothing
after it was started before it; so where it is not started yet nothing is in flight, no credit is taken, and it
starts as soon as it is ready, which no transfer of this round can hold up. Started everywhere, it ends, for its
messages have tags of their own. Hence a next first piece, and so on to the last.
"""

from __future__ import annotations

import abc
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from tightwire.answers import ScheduleAnswer

Partition = tuple[tuple[int, ...], ...]
Phase = Literal["mean", "scatter", "gather"]


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """What a schedule may know of a gradient when it decides what travels together.

    Attributes:
        num_bytes: its size before compression.
        kind: tensors of different kinds (dtype, device, codec) never share a bucket.
        ready_s: when backward produces it, from the start of backward; 0 when not measured.
        is_exact: whether it travels as it is; else a codec leaves less to move than its size says.
    """

    num_bytes: int
    kind: Hashable = None
    ready_s: float = 0.0
    is_exact: bool = True


@dataclass(frozen=True, kw_only=True)
class Wire:
    """What it costs to average a buffer: α + β·bytes.

    Attributes:
        latency_s: α.
        bytes_per_s: 1/β; of the buffer, not of what the program sends for it.
        is_guess: whether it is a what-if, one of thousands, for which a good order of transfers is as welcome as the
            best.
    """

    latency_s: float
    bytes_per_s: float
    is_guess: bool = False

    def seconds(self, num_bytes: float) -> float:
        """Returns how long a buffer takes."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class BucketFacts:
    """What a schedule may know of a bucket when it decides in which pieces and order they move.

    Attributes:
        num_bytes: its size before compression.
        ready_s: when its last gradient is there, from the start of backward. The next forward needs what came
            last first.
        divisible: whether it may be cut anywhere; stages that remember and methods that look at whole tensors forbid
            it.
    """

    num_bytes: int
    ready_s: float
    divisible: bool = True


@dataclass(frozen=True)
class Piece:
    """What moves at once: a bucket's bytes from `start` to before `stop`, to the mean or half the way to it."""

    bucket: int
    start: int
    stop: int
    phase: Phase = "mean"

    @property
    def num_bytes(self) -> int:
        """How much of the bucket it is."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Agenda:
    """What moves in one round, agreed by all ranks.

    Attributes:
        pieces: in the order in which every rank starts them; together they are the buckets. A bucket's `gather` is
            in the lane of its `scatter`, behind it.
        lanes: connections side by side; piece i of the order goes by lane i mod `lanes`, one at a time.
        credit_bytes: so much may be on its way, started and not arrived; a larger piece goes alone.
    """

    pieces: tuple[Piece, ...]
    lanes: int = 1
    credit_bytes: float = math.inf


class Scheduler(abc.ABC):
    """Decides which piece moves next, from events. One object serves one round after another.

    Every rank must start pieces in the same order although gradients may become ready in different orders, so
    an answer depends only on what all ranks know: the agenda and how far this rank has got.
    """

    @abc.abstractmethod
    def begin(self) -> None:
        """Tells that a backward pass begins: nothing is ready, nothing on its way."""

    @abc.abstractmethod
    def ready(self, bucket: int) -> None:
        """Tells that every gradient of `bucket` is ready."""

    @abc.abstractmethod
    def end(self) -> None:
        """Tells that backward is over: whatever is not ready by now never will be, and counts as ready."""

    @abc.abstractmethod
    def next(self) -> int | None:
        """Takes the piece to start now, or None while there is none."""

    def done(self, piece: int) -> None:
        """Tells that a piece has arrived. Callers that move one at a time need not."""
        return


class InOrder(Scheduler):
    """Moves buckets in the order of their numbers, each as soon as it and all before it are ready."""

    def __init__(self, num_buckets: int) -> None:
        self._num_buckets = num_buckets
        self.begin()

    def begin(self) -> None:  # noqa: D102
        self._ready: set[int] = set()
        self._next = 0

    def ready(self, bucket: int) -> None:  # noqa: D102
        self._ready.add(bucket)

    def end(self) -> None:  # noqa: D102
        self._ready.update(range(self._num_buckets))

    def next(self) -> int | None:  # noqa: D102
        if self._next not in self._ready:
            return None
        self._next += 1
        return self._next - 1


class AfterBackward(InOrder):
    """Moves nothing before backward is over."""

    def ready(self, bucket: int) -> None:
        """Waits for `end`."""


class Agreed(Scheduler):
    """Starts the pieces of an agenda in its order, each once its bucket is ready and credit suffices."""

    def __init__(self, agenda: Agenda) -> None:
        self._buckets = [piece.bucket for piece in agenda.pieces]
        self._sizes = [piece.num_bytes for piece in agenda.pieces]
        self._credit_bytes = agenda.credit_bytes
        self.begin()

    def begin(self) -> None:  # noqa: D102
        self._ready: set[int] = set()
        self._ended = False
        self._next = 0
        self._under_way: set[int] = set()
        self._bytes_under_way = 0

    def ready(self, bucket: int) -> None:  # noqa: D102
        self._ready.add(bucket)

    def end(self) -> None:  # noqa: D102
        self._ended = True

    def next(self) -> int | None:  # noqa: D102
        if self._next == len(self._buckets):
            return None
        if not (self._ended or self._buckets[self._next] in self._ready):
            return None
        num_bytes = self._sizes[self._next]
        if self._under_way and self._bytes_under_way + num_bytes > self._credit_bytes:
            return None
        self._under_way.add(self._next)
        self._bytes_under_way += num_bytes
        self._next += 1
        return self._next - 1

    def done(self, piece: int) -> None:  # noqa: D102
        self._under_way.remove(piece)
        self._bytes_under_way -= self._sizes[piece]


@dataclass(frozen=True)
class Schedule(ScheduleAnswer, abc.ABC):
    """An answer to "in which order": how tensors are fused, and who decides what moves next.

    Attributes:
        overlaps_forward: whether means may be under way while the next forward runs.
        measures: whether it decides by measured times, and so begins with a few rounds of watching.
    """

    @property
    def num_fragments(self) -> int:
        """In how many fragments, one after the other, the model agrees in a round."""
        return 1

    @property
    def steps_behind(self) -> int:
        """How many steps are made while a fragment's exchange travels; 0: as the policy says."""
        return 0

    @abc.abstractmethod
    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:
        """Groups tensors into buckets.

        Args:
            tensors: in the order in which backward is expected to produce them.
            wire: what averaging costs; None when not measured.

        Returns:
            The tensors' positions, each exactly once; buckets in the order in which they become ready.
        """

    def agenda(self, buckets: Sequence[BucketFacts], wire: Wire | None = None) -> Agenda:
        """Cuts buckets into pieces, and puts these in the order that all ranks keep to."""
        return Agenda(pieces=whole(buckets))

    @property
    def cut_bytes(self) -> int:
        """What pieces of a bucket are cut to; 0: buckets travel whole."""
        return 0

    def remark(self, num_bytes: int) -> str | None:
        """Returns what will not happen as asked on a model with so many bytes of gradients; None if all will."""
        return None

    def pacer(self, agenda: Agenda) -> Scheduler:
        """Returns what decides at run time."""
        return Agreed(agenda)


def whole(buckets: Sequence[BucketFacts]) -> tuple[Piece, ...]:
    """Returns each bucket as one piece."""
    return tuple(Piece(number, 0, bucket.num_bytes) for number, bucket in enumerate(buckets))


def fuse(tensors: Sequence[TensorFacts], bucket_bytes: float, first_bytes: float | None = None) -> Partition:
    """Fuses neighbours of one kind until a bucket holds at least `bucket_bytes`.

    The first of a kind that travels as it is may be smaller, of `first_bytes`.

    >>> fuse([TensorFacts(num_bytes=n) for n in (4, 4, 4)], 8)
    ((0, 1), (2,))
    >>> fuse([TensorFacts(num_bytes=n) for n in (4, 4, 4)], 8, 4)
    ((0,), (1, 2))
    """
    closed: list[list[int]] = []
    open_by_kind: dict[Hashable, list[int]] = {}
    bytes_by_kind: dict[Hashable, int] = defaultdict(int)  # of the open buckets
    begun: set[Hashable] = set()
    for position, tensor in enumerate(tensors):
        bucket = open_by_kind.setdefault(tensor.kind, [])
        if not bucket:
            closed.append(bucket)
        bucket.append(position)
        full_bytes = bucket_bytes
        if first_bytes is not None and tensor.is_exact and tensor.kind not in begun:
            full_bytes = first_bytes
        bytes_by_kind[tensor.kind] += tensor.num_bytes
        if bytes_by_kind[tensor.kind] >= full_bytes:
            del open_by_kind[tensor.kind], bytes_by_kind[tensor.kind]
            begun.add(tensor.kind)
    return tuple(tuple(bucket) for bucket in sorted(closed, key=lambda bucket: bucket[-1]))


def each(tensors: Sequence[TensorFacts]) -> Partition:
    """Returns every tensor as a bucket of its own."""
    return tuple((position,) for position in range(len(tensors)))
