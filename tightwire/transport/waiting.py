"""The waits of a process, and what becomes of each: it goes on, goes on without somebody, or somebody is to blame."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, replace
from typing import Final, final

from tightwire.transport import program
from tightwire.transport.blame import RankObserved, Verdict, Wait, judge_gone, judge_late, name_ranks, reach
from tightwire.transport.inquiry import REPEAT_S, Inquiry
from tightwire.transport.traffic import CAN_TELL, Movement, connections_to

# What is evidence once a connection has broken: so long without an answer, and so long alive without a word.
BROKEN_SILENT_S: Final = 4.0
BROKEN_ALIVE_S: Final = 8.0

log = logging.getLogger("tightwire")


@dataclass(eq=False)
class Waiting:
    """A wait under way in this process.

    Attributes:
        describe: says whom it waits for, and for what.
        began_s: since when.
        ends_run: whether a peer that is gone ends the run; else it becomes `lost`, and the others go on.
        has_end: whether it may take `late_s` at most; not where one serves others for as long as they like.
        is_first: whether no bytes of the awaited can be under way yet, so that a dead one need not be waited for.
        is_broken: whether its connection is known to be broken, since `began_s`.
        is_late: whether a warning was written.
    """

    describe: Callable[[], Wait]
    began_s: float
    ends_run: bool = True
    has_end: bool = True
    is_first: bool = False
    is_broken: bool = False
    is_late: bool = False


@dataclass(frozen=True)
class Finding:
    """What became of a wait.

    Attributes:
        verdict: who is to blame, if anybody is.
        lost: who is gone, and is done without.
    """

    verdict: Verdict | None = None
    lost: Set[int] = frozenset()


@final
class WaitJudge:
    """Judges waits by their age, by what is known of other ranks, and by whether bytes move on connections.

    Attributes:
        deadline_s: the longest that a rank may be silent while it is waited for.
        late_s: the longest that a rank that is alive may be waited for.
        patience_s: for so long a silent rank is asked; the wait is older by then than the rest of the deadline.
    """

    def __init__(self, inquiry: Inquiry, *, deadline_s: float, late_s: float, patience_s: float) -> None:
        """See above."""
        self.deadline_s, self.late_s, self.patience_s = deadline_s, late_s, patience_s
        self._quiet_s = deadline_s - patience_s
        self._inquiry = inquiry
        self._movement = Movement(
            lambda: connections_to({host for host, _ in inquiry.peers.values()}),
            every_s=min(REPEAT_S, patience_s / 4),
        )

    def look(self, now: float) -> None:
        """Looks whether bytes move on this process's connections, once a wait is suspicious."""
        self._movement.look(now)

    def rest(self) -> None:
        """Forgets what moved: no wait is suspicious any more."""
        self._movement.forget()

    def moves(self, now: float) -> bool:
        """Whether bytes were seen to move lately."""
        return self._movement.moves(now, within_s=self.patience_s)

    def is_blocked(self, now: float) -> bool:
        """Whether this process's main thread waits, and no bytes move; only Linux tells of the latter."""
        is_still = not CAN_TELL or self._movement.is_still(now, for_s=self.patience_s)
        return is_still and program.is_blocked()

    def is_suspicious(self, waiting: Waiting, now: float, lost: Set[int]) -> bool:
        """Whether a wait is broken, or so long that the others are to be asked."""
        if waiting.is_broken or now - waiting.began_s >= (1.0 if waiting.is_first else self._quiet_s):
            return True
        return waiting.ends_run and bool(lost & waiting.describe().peers)

    def judge(self, waiting: Waiting, now: float, lost: Set[int]) -> Finding:
        """Returns what becomes of a suspicious wait.

        Args:
            waiting: the wait.
            now: the time.
            lost: ranks that are done without already.
        """
        inquiry = self._inquiry
        age_s, peers = now - waiting.began_s, set(waiting.describe().peers)
        is_due = age_s >= self.deadline_s or bool(waiting.ends_run and lost & peers)
        if not (is_due or waiting.is_broken or waiting.is_first):
            return Finding()
        patience_s = min(BROKEN_SILENT_S, self.deadline_s / 2) if waiting.is_broken else self.patience_s
        observed = self._observe(waiting, now, lost, is_due=is_due, patience_s=patience_s)
        if not waiting.ends_run:
            gone, verdict = {*inquiry.dead, *inquiry.left}, None
            if not inquiry.hears_nobody(now - patience_s):
                gone.update(observed.silent)
            elif inquiry.has_asked_all(peers, now, for_s=self.deadline_s):
                verdict = Verdict((), "alone")
            if verdict is not None or peers & gone - lost:
                return Finding(verdict, peers & gone - lost)
        elif (verdict := judge_gone(peers, observed)) is not None:
            return Finding(self._doubted(verdict, now - patience_s))
        if waiting.is_broken:
            is_over = age_s >= min(BROKEN_ALIVE_S, self.deadline_s)
            return Finding(Verdict(tuple(sorted(peers)), "broken") if is_over else None)
        if waiting.has_end and is_due:
            return Finding(self._judge_late(waiting, peers - lost, observed, now))
        return Finding()

    def _observe(
        self, waiting: Waiting, now: float, lost: Set[int], *, is_due: bool, patience_s: float
    ) -> RankObserved:
        inquiry = self._inquiry
        silent = inquiry.silent(now, patience_s=patience_s)
        if not waiting.is_broken:  # one that has answered may be silent for a deadline from then on
            silent -= {r for r in silent if now - inquiry.answered_s(r, waiting.began_s) < self.deadline_s}
        counted = silent | lost if is_due or waiting.is_broken else lost
        return RankObserved(
            waits={r: answer.waits for r, answer in inquiry.answers.items()}
            | {inquiry.rank: waiting.describe().peers},
            dead=inquiry.dead,
            silent=counted - inquiry.dead,
            left=inquiry.left,
            places={r: answer.place for r, answer in inquiry.answers.items()},
        )

    def _doubted(self, verdict: Verdict, since_s: float) -> Verdict:
        """Returns the verdict, but for a rank without which others went on, or that hears nobody at all.

        It is not they who are gone then: this one was, or its own link may be down.
        """
        if verdict.reason != "failed" and self._inquiry.gave_up & set(verdict.ranks):
            return Verdict((self._inquiry.rank,), "given-up")
        if verdict.reason == "silent" and self._inquiry.hears_nobody(since_s):
            return Verdict((), "alone")
        return verdict

    def _judge_late(
        self, waiting: Waiting, peers: set[int], observed: RankObserved, now: float
    ) -> Verdict | None:
        inquiry, age_s = self._inquiry, now - waiting.began_s
        unknown = reach(peers, observed.waits) - inquiry.answers.keys() - {inquiry.rank}
        if unknown or not peers:
            return None
        verdict = judge_late(peers, observed)
        if verdict.reason == "cycle" and self._is_moving(verdict.ranks, now):
            verdict = replace(verdict, reason="slow")
        is_stuck = verdict.reason == "cycle" and self._is_stuck(verdict.ranks, now)
        if (age_s >= self.late_s or is_stuck) and inquiry.is_fresh(verdict.ranks, now):
            return verdict
        if verdict.reason in ("late", "slow") and not waiting.is_late:
            waiting.is_late = True
            self._warn(verdict, waiting.describe().what, age_s)
        return None

    def _is_stuck(self, ranks: Collection[int], now: float) -> bool:
        """Whether nothing in the programs of some ranks, which wait for each other, can go on."""
        others = [self._inquiry.answers[rank] for rank in ranks if rank != self._inquiry.rank]
        return self.is_blocked(now) and all(a.is_blocked and a.age_s >= self.deadline_s for a in others)

    def _is_moving(self, ranks: Collection[int], now: float) -> bool:
        """Whether bytes move on connections of any of some ranks: their waits may end yet."""
        others = (self._inquiry.answers[rank] for rank in ranks if rank != self._inquiry.rank)
        return self.moves(now) or any(answer.is_moving for answer in others)

    def _warn(self, verdict: Verdict, what: str, age_s: float) -> None:
        log.warning(
            "%s alive but %s: this worker (rank %d) has waited %s for %.0f s%s. It goes on waiting, for %.0f s at "
            "most (late_s).",
            f"{name_ranks(verdict.ranks)} {'are' if len(verdict.ranks) > 1 else 'is'}",
            "slow, bytes still move between them" if verdict.reason == "slow" else "late",
            self._inquiry.rank,
            what,
            age_s,
            f"; it is in {verdict.note}" if verdict.note else "",
            self.late_s,
        )
