"""The schedule contract: which tensors travel together, and which bucket moves next.

Pure logic. A scheduler owns no clock, thread or socket: it receives events and answers what to move next. The
runtime drives it with real events, the simulator drives the same object with virtual ones.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire.plan import Axis, Member

Partition = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """What a schedule may know of a gradient when it decides what travels together.

    Attributes:
        num_bytes: its size before compression.
        kind: tensors of different kinds (dtype, device, codec) never share a bucket.
        ready_s: when backward produces it, from the start of backward; 0 when not measured.
    """

    num_bytes: int
    kind: Hashable = None
    ready_s: float = 0.0


class Scheduler(abc.ABC):
    """Decides which bucket moves next, from events. One object serves one step after another.

    Every rank must move buckets in the same order although gradients may become ready in different orders, so
    an answer depends only on what all ranks know: the bucket numbers and how far this rank has got.
    """

    @abc.abstractmethod
    def begin(self) -> None:
        """Tells that a backward pass begins: nothing is ready."""

    @abc.abstractmethod
    def ready(self, bucket: int) -> None:
        """Tells that every gradient of `bucket` is ready."""

    @abc.abstractmethod
    def end(self) -> None:
        """Tells that backward is over: whatever is not ready by now never will be, and counts as ready."""

    @abc.abstractmethod
    def next(self) -> int | None:
        """Takes the bucket to move now, or None while there is none. The caller moves one at a time."""


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


@dataclass(frozen=True)
class Schedule(Member, abc.ABC):
    """An answer to "in which order": how tensors are fused, and who decides what moves next."""

    axis: ClassVar[Axis] = "schedule"

    @abc.abstractmethod
    def partition(self, tensors: Sequence[TensorFacts]) -> Partition:
        """Groups tensors into buckets.

        Args:
            tensors: in the order in which backward is expected to produce them.

        Returns:
            The tensors' positions, each exactly once; buckets in the order in which they should move.
        """

    def scheduler(self, num_buckets: int) -> Scheduler:
        """Returns the object that decides the order at run time."""
        return InOrder(num_buckets)


def fuse(tensors: Sequence[TensorFacts], bucket_bytes: float) -> Partition:
    """Fuses neighbours of one kind until a bucket holds at least `bucket_bytes`.

    >>> fuse([TensorFacts(num_bytes=n) for n in (4, 4, 4)], 8)
    ((0, 1), (2,))
    """
    closed: list[list[int]] = []
    open_by_kind: dict[Hashable, list[int]] = {}
    for position, tensor in enumerate(tensors):
        bucket = open_by_kind.setdefault(tensor.kind, [])
        if not bucket:
            closed.append(bucket)
        bucket.append(position)
        if sum(tensors[p].num_bytes for p in bucket) >= bucket_bytes:
            del open_by_kind[tensor.kind]
    return tuple(tuple(bucket) for bucket in sorted(closed, key=lambda bucket: bucket[-1]))
