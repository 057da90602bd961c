"""Who has come to a round that does not wait for all: what workers announce, and when a round may begin."""

from __future__ import annotations

import logging
import time

from tightwire.errors import PeerError
from tightwire.runtime.membership import Membership
from tightwire.sync import Quorum
from tightwire.transport import Transport
from tightwire.transport.blame import name_ranks

# What a worker announces when it hands in nothing until all meet.
RESTS = 2**32 - 1
# An announcement is a datagram, which may be lost: it is repeated so often.
REPEAT_S = 1.0
# How many meetings of all there may be until their number comes again.
MOST_MEETINGS, MOST_RESTS = 2**18, 2**12

log = logging.getLogger("tightwire")


class Attendance:
    """Tells, on every rank, whether the next round may begin.

    Workers announce the number of the round for which they have handed in their change, beside all messages. A round
    may begin when all that train have, or when a quorum has, somebody in it is not behind, and the grace is over. Each
    rank judges for itself by what it has heard. Ranks may judge at different times, but none differently for long, and
    a round begins when the last one judges that it may: an announcement that is late costs time and nothing else.

    Contract: any thread, one at a time; blocks nowhere; sends no payload.
    """

    def __init__(self, transport: Transport, membership: Membership, quorum: Quorum, policy: str) -> None:
        """Takes what decides.

        Args:
            transport: over the members.
            membership: knows how often all have met.
            quorum: with which a round begins.
            policy: for the messages.
        """
        self._transport, self._membership = transport, membership
        self._quorum, self._policy = quorum, policy
        self._landed = 0
        self._mine = 0
        self._rested = 0  # times
        self._told_s = 0.0
        self._there_s: float | None = None  # since when a quorum is there
        self._missing_since_s: dict[int, float] = {}
        self._warned: set[int] = set()

    @property
    def rests(self) -> bool:
        """Whether this worker hands in nothing until all meet."""
        return self._mine == RESTS

    def arrive(self, number: int, *, is_behind: bool = False) -> None:
        """Announces that this worker's change is handed in for a round.

        Args:
            number: of the round.
            is_behind: whether it is one that rounds before have gone past.
        """
        self._mine = number * 2 + is_behind
        self._announce()

    def rest(self) -> None:
        """Announces that this worker hands in nothing from now on."""
        self._mine = RESTS
        self._announce()

    def begin_anew(self, landed: int) -> None:
        """Forgets what was announced: all rest, and train on from a count of rounds, the same on all."""
        self._rested += 1
        self._mine, self._landed, self._there_s = 0, landed, None
        self._missing_since_s.clear()

    def count_from(self, landed: int) -> None:
        """Takes up a count of rounds, before anything is announced. Where members change; else `begin_anew`."""
        self._landed = landed

    def note_round(self, landed: int) -> None:
        """Takes in that so many rounds are over."""
        now, come = time.monotonic(), self._come()
        for rank, told in come.items():
            if told >> 1 > self._landed:
                self._missing_since_s.pop(rank, None)
                self._warned.discard(rank)
            elif rank != self._transport.rank:
                self._missing_since_s.setdefault(rank, now)
        self._landed, self._there_s = landed, None

    def may_begin(self) -> bool:
        """Whether the next round may begin.

        Raises:
            PeerError: rounds have gone on without a worker for longer than one may be late.
        """
        now = time.monotonic()
        if self._mine and now - self._told_s > REPEAT_S:
            self._announce()
        self._judge_missing(now)
        training = [told for told in self._come().values() if told != RESTS]
        here = [told for told in training if told >> 1 > self._landed]
        if len(here) == len(training):
            return True
        # Those who are behind alone would begin a round in the middle of the others' steps.
        is_due = any(told & 1 == 0 for told in here)
        if len(here) < self._quorum.count(len(training)) or not is_due:
            self._there_s = None
            return False
        self._there_s = now if self._there_s is None else self._there_s
        return now - self._there_s >= self._quorum.grace_s

    def missing(self) -> frozenset[int]:
        """Returns the ranks without which the next round cannot begin, or which are still in their grace."""
        return frozenset(rank for rank, told in self._come().items() if told >> 1 <= self._landed)

    def _come(self) -> dict[int, int]:
        """Returns what each rank has told: twice the round for which it has handed in, and 1 more if it is behind."""
        mine = self._transport.rank
        told = {r: self._transport.announced(r) for r in range(self._transport.size) if r != mine}
        now = self._mark(0) >> 32
        return {r: mark & RESTS if mark >> 32 == now else 0 for r, mark in told.items()} | {mine: self._mine}

    def _announce(self) -> None:
        self._told_s = time.monotonic()
        self._transport.announce(self._mark(self._mine))

    def _mark(self, number: int) -> int:
        """Returns a number that means nothing after the next meeting or rest of all."""
        met, rested = (self._membership.meetings + 1) % MOST_MEETINGS, self._rested % MOST_RESTS
        return ((met * MOST_RESTS + rested) << 32) + number

    def _judge_missing(self, now: float) -> None:
        aged = {rank: now - since_s for rank, since_s in self._missing_since_s.items()}
        if late := [rank for rank, age_s in aged.items() if age_s >= self._transport.late_s]:
            ranks = [self._membership.ranks[rank] for rank in late]
            raise PeerError(
                f"{name_ranks(ranks)} handed in nothing for {self._transport.late_s:g} s while rounds of "
                f"{self._policy} went on without. Look at the log; raise late_s if its steps take that long.",
                ranks,
            )
        slow = [
            r for r, age_s in aged.items() if age_s >= self._transport.deadline_s and r not in self._warned
        ]
        if slow:
            self._warned.update(slow)
            log.warning(
                "%s handed in nothing for %.0f s; rounds of %s go on without, for %.0f s at most (late_s).",
                name_ranks([self._membership.ranks[rank] for rank in slow]),
                self._transport.deadline_s,
                self._policy,
                self._transport.late_s,
            )
