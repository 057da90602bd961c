"""The door of an elastic job: who is in is decided elsewhere; each time anybody came or went, a new world begins."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tightwire.transport.base import Transport


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A world that this worker was let into.

    Attributes:
        number: of the decision; grows.
        names: of all members, by rank.
        transport: between them.
    """

    number: int
    names: tuple[str, ...]
    transport: Transport


class Door(Protocol):
    """Lets this worker in, again and again.

    Attributes:
        name: of this worker, which no other has.
        watches: whether this worker looks for those who wait outside; one of a world does.
        notice: set once this worker is to leave.
    """

    name: str
    watches: bool
    notice: threading.Event

    def enter(self, rounds: int) -> Admission:
        """Leaves the world before, if there was one, and enters the next.

        Args:
            rounds: that this worker has the outcome of; 0 if it has none yet.

        Contract: every worker that lives; blocks until all have come, or those that have not are taken for dead.

        Raises:
            PeerError: nobody let it in.
        """

    def knocks(self) -> bool:
        """Whether somebody waits outside, as far as this worker knows; local, at once."""

    def counts(self, ranks: Sequence[int]) -> bool:
        """Whether some members, lost to this worker, are still taken for living, so that `enter` would wait; local."""

    def gone(self) -> Sequence[int]:
        """Returns the members that are gone, as far as this worker knows, though nobody waited for them; local."""

    def is_left_behind(self) -> bool:
        """Whether the others have gone on in another world, as after this worker was stopped; local, at once."""

    def connects(self) -> bool:
        """Whether the next world is being connected, behind training; `enter` waits for it. Local, at once."""

    def close(self) -> None:
        """Goes away for good: the others are told at once. Local."""
