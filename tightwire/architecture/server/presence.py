"""Who is there: the workers of a shard, who is waited for and who is not any more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from tightwire.architecture.server.turns import Turns
from tightwire.errors import PeerError, TransportError
from tightwire.transport.blame import name_ranks

log = logging.getLogger("tightwire")

# How many times a waiting worker hears within a deadline that its server lives.
SIGNS_OF_LIFE = 4


@dataclass(eq=False)
class Seat:
    """What a shard knows of one worker.

    Attributes:
        rank: in the world.
        clock: steps whose gradients it has sent.
        read_at: updates made when it last read.
        read_in: the round in which it last read.
        heard_s: when it last sent anything.
        has: per bucket, the parameters that it has; empty where nobody needs to know.
        push: room for what it sends, where that comes from elsewhere.
        pull: room for what it is sent.
        is_under_way: whether it has sent gradients since all last landed together.
        state: present: it takes part; left: it stopped for now; gone: for good.
    """

    rank: int
    has: list[Tensor]
    push: Tensor
    pull: Tensor
    clock: int = 0
    read_at: int = 0
    read_in: int = 0
    heard_s: float = 0.0
    is_under_way: bool = False
    state: str = "present"


@final
class Presence:
    """The workers of one shard, and why nothing more is served once that is so.

    Whoever calls it has a turn, but for `has_failed` and `require_sound`.

    Attributes:
        seats: of the workers, by number.
    """

    def __init__(
        self,
        seats: Sequence[Seat],
        changed: Turns,
        *,
        policy: str,
        owner: int,
        deadline_s: float,
        late_s: float,
        ends_on_loss: bool,
    ) -> None:
        """Everybody is there.

        Args:
            seats: of the workers.
            changed: the shard's turns.
            policy: who waits for whom, as messages call it.
            owner, deadline_s, late_s, ends_on_loss: see `Shard`.
        """
        self.seats, self._changed = seats, changed
        self._policy, self._owner = policy, owner
        self._deadline_s, self._late_s = deadline_s, late_s
        self._ends_on_loss, self._lost = ends_on_loss, list[int]()
        self._failure, self._is_frozen = "", False

    @property
    def present(self) -> list[Seat]:
        """Who takes part now."""
        return [seat for seat in self.seats if seat.state == "present"]

    @property
    def has_failed(self) -> bool:
        """Whether something failed here, such as the optimizer."""
        return bool(self._failure)

    @property
    def is_ended(self) -> bool:
        """Whether members are about to begin another world."""
        return self._is_frozen or bool(self._lost)

    def hear(self, worker: int) -> Seat:
        """Returns the seat of a worker, which has sent something now."""
        self.seats[worker].heard_s = time.monotonic()
        return self.seats[worker]

    def lose(self, seat: Seat, *, by_intent: bool) -> bool:
        """Counts a worker as gone for good; returns whether the others go on without it."""
        if self._ends_on_loss and not by_intent:
            self._lost.append(seat.rank)
            self._changed.notify_all()
            return False
        seat.state = "gone"
        return True

    def freeze(self) -> None:
        """Ends all waits with a `PeerError`."""
        self._is_frozen = True
        self._changed.notify_all()

    def fail(self, failure: str, ranks: Sequence[int]) -> TransportError:
        """Has every worker learn that nothing more is served, and returns the error that says why."""
        self._failure = failure
        self._changed.notify_all()
        return self._error(ranks)

    def require_sound(self) -> None:
        """Makes sure that nothing has failed, and that nobody is lost whose loss ends all waits.

        Raises:
            PeerError: it has; names the owner's rank, or those that are lost.
            TransportError: it has, where a loss would be mended.
        """
        if self._failure:
            raise self._error([self._owner])
        if self.is_ended:
            whom = name_ranks(self._lost) if self._lost else "another member"
            raise PeerError(f"{whom} was lost by the server of rank {self._owner}.", self._lost)

    def wait(self, missing: Callable[[], list[Seat]], what: str, on_wait: Callable[[], None]) -> None:
        """Waits until nobody is missing.

        Raises:
            PeerError: somebody is, and has sent nothing for too long.
        """
        began_s = told_s = time.monotonic()
        warned: set[int] = set()
        while seats := missing():
            self.require_sound()
            self._changed.wait(self._deadline_s / SIGNS_OF_LIFE)
            # Also where others' steps keep waking it up: that is no sign for the worker that waits.
            if time.monotonic() - told_s >= self._deadline_s / SIGNS_OF_LIFE:
                told_s = time.monotonic()
                with self._changed.aside():
                    on_wait()
            now = time.monotonic()
            quiet_s = {s.rank: now - max(s.heard_s, began_s) for s in seats if s in missing()}
            if late := [rank for rank, age_s in quiet_s.items() if age_s >= self._late_s]:
                raise PeerError(
                    f"{name_ranks(late)} sent nothing for {self._late_s:g} s, while {what} was waited for under "
                    f"{self._policy}. Look at the log; raise late_s if a step takes that long.",
                    late,
                )
            if slow := [r for r, age_s in quiet_s.items() if age_s >= self._deadline_s and r not in warned]:
                warned.update(slow)
                log.warning(
                    "%s sent nothing for %.0f s, while %s is waited for under %s; waiting goes on.",
                    name_ranks(slow),
                    self._deadline_s,
                    what,
                    self._policy,
                )
        self.require_sound()

    def _error(self, ranks: Sequence[int]) -> TransportError:
        """Returns the error of what failed: where members are elastic, none that they would mend by beginning anew."""
        return TransportError(self._failure) if self._ends_on_loss else PeerError(self._failure, ranks)
