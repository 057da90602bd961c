"""A world of one: a null object, so that nothing else asks whether it is distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from tightwire.transport.base import (
    DONE,
    Transport,
    Watch,
    Work,
    check_group,
    check_message,
    check_summable,
)
from tightwire.transport.blame import Wait
from tightwire.transport.door import Door

if TYPE_CHECKING:
    from torch import Tensor


class NoWatch:
    """A watch of a wait for nobody."""

    def check(self) -> None:
        """Returns."""

    def close(self) -> None:
        """Does nothing."""


NO_WATCH = NoWatch()


@final
class Single(Transport):
    """One rank, alone: every collective is the identity and nothing is ever sent."""

    rank = 0
    size = 1
    native_dtypes = frozenset(
        {"float32", "float64", "float16", "bfloat16", "uint8", "int8", "int32", "int64"}
    )

    def __init__(self, *, deadline_s: float = 30.0, door: Door | None = None) -> None:
        """Is alone.

        Args:
            deadline_s: of nothing.
            door: by which this worker may join others, which `attach` does.
        """
        self.deadline_s = self.late_s = deadline_s
        self.door = door

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Refuses: there is nobody to send to."""
        check_message(self, tensor, dst)
        return DONE

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Refuses: there is nobody to receive from."""
        check_message(self, tensor, src)
        return DONE

    def all_reduce(self, tensor: Tensor) -> Work:
        """Leaves `tensor` as it is: the sum over one rank."""
        check_summable(self, tensor)
        return DONE

    def exchange(self, payload: bytes) -> list[bytes]:
        """Returns `[payload]`."""
        return [payload]

    def channel(self) -> Transport:
        """Returns this object: it has no connections to keep apart."""
        return self

    def group(self, ranks: Sequence[int]) -> Transport:
        """Returns this object: rank 0 is the only legal group."""
        check_group(self, ranks)
        return self

    def barrier(self) -> None:
        """Returns at once."""

    def watch(self, wait: Wait, *, ends_run: bool = False, is_first: bool = False) -> Watch:
        """Returns a watch that finds nothing."""
        return NO_WATCH

    def fail(self, error: BaseException) -> None:
        """Does nothing: there is nobody to tell."""

    def announce(self, number: int) -> None:
        """Does nothing: there is nobody to tell."""

    def announced(self, rank: int) -> int:
        """Returns 0."""
        return 0

    def give_up(self, rank: int) -> None:
        """Does nothing: nothing attends to anybody."""

    def close(self) -> None:
        """Goes away from the door, if there is one."""
        if self.door is not None:
            self.door.close()
