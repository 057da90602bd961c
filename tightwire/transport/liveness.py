"""Who is alive, and what each rank waits for: a datagram socket and a thread in every process.

Nothing is sent while all goes well. The thread looks at this process's waits: when one has lost its connection, or
lasts long, it asks the ranks that the wait depends on, and those that they in turn wait for. Every process that lives
answers, whatever its main thread does. What is then said of a rank is what was observed: it told why it failed, its
process has ended (its port is closed), it does not answer, its connections broke, or it is alive but elsewhere in its
program, and where. The verdict is told to all, so that nobody sits out a deadline of their own.

Datagrams carry the job's seal; whatever does not, or is malformed, is dropped before it is read.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, final

from tightwire.errors import PeerError
from tightwire.transport import program
from tightwire.transport.addresses import Address
from tightwire.transport.blame import (
    RankObserved,
    Verdict,
    Wait,
    accuse,
    judge_gone,
    judge_late,
    name_ranks,
    reach,
)
from tightwire.transport.ear import Ear
from tightwire.transport.messages import MAX_TEXT, Message
from tightwire.transport.seal import Seal
from tightwire.transport.traffic import CAN_TELL, Movement, connections_to

# A silent rank is asked so often; most ranks asked at a time, so that a thousand do not flood each other.
REPEAT_S: Final = 0.4
MOST_ASKED: Final = 32
MOST_WITNESSES: Final = 8
# What is evidence once a connection has broken: so long without an answer, and so long alive without a word.
BROKEN_SILENT_S: Final = 4.0
BROKEN_ALIVE_S: Final = 8.0
LATE_FACTOR: Final = 20.0

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


@final
class Liveness:
    """Answers whoever asks, looks after this process's waits, knows who left, hears and finds verdicts.

    Attributes:
        rank: this process, in the world.
        deadline_s: the longest that a rank may be silent while it is waited for.
        late_s: the longest that a rank that is alive may be waited for.
        address: where this process listens.
        verdict: the ranks to blame, once known.
        announced: the number that each rank told last.
        lost: ranks that are gone and that those who waited go on without.
        changed: notified when a verdict is known or a rank is lost.
    """

    def __init__(self, rank: int, *, host: str, deadline_s: float, late_s: float | None = None) -> None:
        """Takes a port; `meet` follows.

        Args:
            rank: this process.
            host: this process's address, on the interface that carries the traffic.
            deadline_s: see above.
            late_s: see above; by default 20 deadlines.
        """
        self.rank, self.deadline_s = rank, deadline_s
        self.late_s = LATE_FACTOR * deadline_s if late_s is None else max(late_s, deadline_s)
        self.verdict: Verdict | None = None
        self.lost: set[int] = set()
        self.announced: dict[int, int] = {}
        self.changed = threading.Condition()
        self._quiet_s = max(deadline_s - 15.0, deadline_s / 2)
        # Who is silent is asked for so long, and who is still is looked at: from `_quiet_s` on.
        self._still_s = deadline_s - self._quiet_s
        self._movement = Movement(
            lambda: connections_to({host for host, _ in self._peers.values()}),
            every_s=min(REPEAT_S, self._still_s / 4),
        )
        self._waits: dict[object, Waiting] = {}
        self._seal: Seal | None = None
        self._peers: dict[int, Address] = {}
        self._by_address: dict[Address, int] = {}
        self._number = itertools.count(1)
        self._asked_s: dict[int, float] = {}  # since when without an answer
        self._asked_last_s: dict[int, float] = {}
        self._answers: dict[int, Message] = {}
        self._answered_s: dict[int, float] = {}
        self._dead: set[int] = set()
        self._left: dict[int, str] = {}
        self._gave_up: set[int] = set()  # who left, and had gone on without this rank
        self._note = ""
        self._has_left = False
        self._on_verdict: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._ear = Ear(host, tick_s=min(1.0, deadline_s / 8), soon_s=REPEAT_S / 4)
        self.address: Final[Address] = self._ear.address

    def meet(self, addresses: Mapping[int, Address], seal: Seal) -> None:
        """Learns where the other ranks listen, and the job's seal; from now on they are listened to."""
        self._seal = seal
        self._peers = {rank: where for rank, where in addresses.items() if rank != self.rank}
        self._by_address = {where: rank for rank, where in self._peers.items()}
        self._ear.start(self)

    def on_verdict(self, wake: weakref.WeakMethod[Callable[[], None]]) -> None:
        """Has `wake` called once some rank is to blame, to end the waits of this process; or at once."""
        with self.changed:
            self._on_verdict = [*(known for known in self._on_verdict if known() is not None), wake]
            is_known = self.verdict is not None
        if is_known and (method := wake()):
            method()

    def watch(
        self,
        key: object,
        describe: Callable[[], Wait],
        *,
        ends_run: bool = True,
        has_end: bool = True,
        is_first: bool = False,
    ) -> None:
        """Looks after a wait until `unwatch(key)`; see `Waiting`."""
        self._waits[key] = Waiting(describe, time.monotonic(), ends_run, has_end, is_first)

    def unwatch(self, key: object) -> None:
        """Ends a watch."""
        self._waits.pop(key, None)

    def waited_s(self) -> float:
        """Returns for how long this process has waited for others, who end the run if they are gone."""
        began_s = [waiting.began_s for waiting in list(self._waits.values()) if waiting.ends_run]
        return time.monotonic() - min(began_s) if began_s else 0.0

    @property
    def is_left_behind(self) -> bool:
        """Whether most others have left this world: they are in another one, if anywhere."""
        return 2 * len(self._left) > len(self._peers) or (
            self.verdict is not None and self.verdict.reason == "given-up"
        )

    def hear_silent(self, ranks: Collection[int]) -> None:
        """Hears from one who listens all the time that ranks are silent: whoever is waited for is gone then."""
        waits = [waiting.describe().peers for waiting in list(self._waits.values()) if waiting.ends_run]
        if gone := set(ranks) & set().union(*waits) - self._left.keys():
            self._decide(Verdict(tuple(sorted(gone)), "silent"))

    def blame(self, wait: Wait) -> PeerError:
        """Returns the error for a wait whose connection broke, once it is known who is to blame.

        Contract: blocks until then: milliseconds where a process has died or told its error, else seconds.
        """
        if self.verdict is None and not self._has_left:
            key = object()
            self._waits[key] = Waiting(lambda: wait, time.monotonic(), is_broken=True)
            self._ear.wake()
            with self.changed:
                self.changed.wait_for(lambda: self.verdict is not None or self._has_left, self.late_s)
            self.unwatch(key)
        if self.verdict is None:
            return PeerError(
                f"this worker closed its transport while it waited {wait.what}; close a transport at the very "
                "end",
                [],
            )
        return self.accuse(wait)

    def wait_for_all(self, what: str) -> Wait:
        """Returns a wait for every other rank."""
        return Wait(frozenset(self._peers), what)

    def accuse(self, wait: Wait | None) -> PeerError:
        """Returns the error for a wait that the verdict, which is known, has ended."""
        assert self.verdict is not None
        limit_s = self.late_s if self.verdict.reason in ("late", "slow") else self.deadline_s
        return accuse(self.verdict, waiting=wait, deadline_s=limit_s, rank=self.rank)

    def fail(self, note: str) -> None:
        """Tells all why what runs here has failed, before its connections close; this process may begin anew."""
        if self.verdict is None and not self._has_left:
            self._note = note[:MAX_TEXT] or "an error without a text"
            self._tell(Message(kind="left", sender=self.rank, note=self._note))

    def recover(self) -> None:
        """Takes back what `fail` told: this process goes on."""
        self._note = ""

    def announce(self, number: int) -> None:
        """Tells all a number, in place of the one before."""
        self.announced[self.rank] = number
        self._tell(Message(kind="done", sender=self.rank, done=number))

    def leave(self, note: str = "") -> None:
        """Tells all that this rank leaves, and why if it failed; stops listening. Again: does nothing."""
        if self._has_left:
            return
        last_word = Message(kind="left", sender=self.rank, note=note[:MAX_TEXT] or self._note)
        self._tell(self._verdict_message() or last_word)
        for rank in self.lost & self._peers.keys():  # it may be stopped, and reads this when it goes on
            self._send_to(self._peers[rank], replace(last_word, gave_up=True))
        self._has_left = True
        with self.changed:
            self.changed.notify_all()
        self._ear.close()

    # What the ear hears

    def hear(self, data: bytes, sender: Address) -> None:
        """Takes a datagram, if it is of this job."""
        content = self._seal.open(data) if self._seal is not None else None
        message = None if content is None else Message.of(content, len(self._peers) + 1)
        if message is None or message.sender == self.rank:
            return
        match message.kind:
            case "ask":
                self._send_to(sender, self._answer(message))
            case "here":
                self._note_answer(message)
            case "left":
                self._left[message.sender] = message.note
                if message.gave_up:
                    self._gave_up.add(message.sender)
            case "done":
                self.announced[message.sender] = message.done
            case "verdict":
                self._decide(Verdict(message.waits, message.reason, message.note), is_told=True)

    def note_closed(self, address: Address) -> None:
        """Notes that the process that listened at an address has ended."""
        if (rank := self._by_address.get(address)) is not None:
            self._dead.add(rank)

    def _note_answer(self, message: Message) -> None:
        rank, now = message.sender, time.monotonic()
        if self._hears_nobody(now - self._still_s) and self._asks_long(now):
            # This one's own link was down: the silence of the others, who answer a moment later, counts anew.
            self._asked_s = dict.fromkeys(self._asked_s, now)
        self._answers[rank], self._answered_s[rank] = message, now
        self._asked_s.pop(rank, None)
        self._dead.discard(rank)
        self.announced[rank] = message.done
        if message.note:
            self._left[rank] = message.note
        else:
            self._left.pop(rank, None)
        if message.gave_up and any(rank in w.describe().peers for w in list(self._waits.values())):
            self._decide(Verdict((self.rank,), "given-up"), is_told=True)

    def _answer(self, question: Message) -> Message:
        if (verdict := self._verdict_message()) is not None:
            return verdict
        now = time.monotonic()
        mine = [(w, w.describe()) for w in list(self._waits.values()) if w.has_end]
        return Message(
            kind="here",
            sender=self.rank,
            number=question.number,
            waits=tuple(sorted({peer for _, wait in mine for peer in wait.peers})),
            age_s=min((now - w.began_s for w, _ in mine), default=0.0),
            is_blocked=self._is_blocked(now),
            is_moving=self._movement.moves(now, within_s=self._still_s),
            place=program.place()[:MAX_TEXT],
            gave_up=question.sender in self.lost,
            note=self._note,
            done=self.announced.get(self.rank, 0),
        )

    def _verdict_message(self) -> Message | None:
        verdict = self.verdict
        if verdict is None or verdict.reason in ("given-up", "alone"):  # of this rank alone
            return None
        return Message(
            kind="verdict",
            sender=self.rank,
            waits=verdict.ranks,
            reason=verdict.reason,
            note=verdict.note[:MAX_TEXT],
        )

    # Looking after this process's waits

    def look(self) -> bool:
        """Asks about waits that are broken or long, and judges; returns whether there are any."""
        now = time.monotonic()
        suspicious = [w for w in list(self._waits.values()) if self._is_suspicious(w, now)]
        if not suspicious or self.verdict is not None:
            self._asked_s.clear()
            self._answers.clear()
            self._movement.forget()
            return False
        self._movement.look(now)
        known = {rank: answer.waits for rank, answer in self._answers.items()}
        self._ask(
            [r for w in suspicious if w.has_end for r in self._depends(w, known)],
            [
                *(r for w in suspicious if not w.has_end for r in self._depends(w, known)),
                *self._witnesses(now),
            ],
            now,
        )
        for waiting in sorted(suspicious, key=lambda w: w.began_s):
            if self.verdict is None:
                self._judge(waiting, now)
        return True

    def _witnesses(self, now: float) -> list[int]:
        """Returns ranks to ask where one does not answer: if they do not either, it is this rank that is cut off."""
        if not any(now - since > 2 * REPEAT_S for since in self._asked_s.values()):
            return []
        size = len(self._peers) + 1
        return [(self.rank + step) % size for step in range(1, min(MOST_WITNESSES, size - 1) + 1)]

    def _is_suspicious(self, waiting: Waiting, now: float) -> bool:
        if waiting.is_broken or now - waiting.began_s >= (1.0 if waiting.is_first else self._quiet_s):
            return True
        return waiting.ends_run and bool(self.lost & waiting.describe().peers)

    def _depends(self, waiting: Waiting, known: Mapping[int, Collection[int]]) -> set[int]:
        peers = waiting.describe().peers
        return (
            reach(peers, known) if waiting.ends_run else set(peers) - self.lost
        )  # without whom the others go on

    def _ask(self, often: Collection[int], seldom: Collection[int], now: float) -> None:
        """Asks ranks: again and again those that have not answered."""
        size, seldom_s = len(self._peers) + 1, max(REPEAT_S, self.deadline_s / 8)

        def is_due(rank: int) -> bool:
            repeat_s = REPEAT_S if rank in often or rank in self._asked_s else seldom_s
            return now - self._asked_last_s.get(rank, 0.0) >= repeat_s

        due = [r for r in {*often, *seldom} - self._dead if r in self._peers and is_due(r)]
        due.sort(key=lambda r: (self._asked_last_s.get(r, 0.0), (r - self.rank) % size))
        for rank in due[:MOST_ASKED]:
            self._asked_last_s[rank] = now
            self._asked_s.setdefault(rank, now)
            question = Message(kind="ask", sender=self.rank, number=next(self._number))
            self._send_to(self._peers[rank], question)
        if due:
            time.sleep(0.002)  # within a round trip a closed port is known
        self._ear.closed_ports(self.note_closed)

    def _judge(self, waiting: Waiting, now: float) -> None:
        age_s, peers = now - waiting.began_s, set(waiting.describe().peers)
        is_due = age_s >= self.deadline_s or bool(waiting.ends_run and self.lost & peers)
        if not (is_due or waiting.is_broken or waiting.is_first):
            return
        broken_patience_s = min(BROKEN_SILENT_S, self.deadline_s / 2)
        patience_s = broken_patience_s if waiting.is_broken else self._still_s
        silent = {r for r, since in self._asked_s.items() if now - since >= patience_s} - self._dead
        if not waiting.is_broken:  # one that has answered may be silent for a deadline from then on
            silent -= {r for r in silent if now - self._answered_s.get(r, waiting.began_s) < self.deadline_s}
        observed = RankObserved(
            waits={r: answer.waits for r, answer in self._answers.items()} | {self.rank: peers},
            dead=self._dead,
            silent=(silent | self.lost) - self._dead
            if is_due or waiting.is_broken
            else self.lost - self._dead,
            left=self._left,
            places={r: answer.place for r, answer in self._answers.items()},
        )
        if not waiting.ends_run:
            gone = {*self._dead, *self._left}
            if not self._hears_nobody(now - patience_s):
                gone.update(observed.silent)
            elif all(now - self._asked_s.get(rank, now) >= self.deadline_s for rank in peers):
                self._decide(Verdict((), "alone"))
            self._lose(peers & gone - self.lost)
        elif (verdict := judge_gone(peers, observed)) is not None:
            self._decide(self._doubted(verdict, now - patience_s))
            return
        if waiting.is_broken:
            if age_s >= min(BROKEN_ALIVE_S, self.deadline_s):
                self._decide(Verdict(tuple(sorted(peers)), "broken"))
        elif waiting.has_end and is_due:
            self._judge_late(waiting, peers - self.lost, observed, age_s)

    def _doubted(self, verdict: Verdict, since_s: float) -> Verdict:
        """Returns the verdict, but for a rank without which others went on, or that hears nobody at all.

        It is not they who are gone then: this one was, or its own link may be down.
        """
        if verdict.reason != "failed" and self._gave_up & set(verdict.ranks):
            return Verdict((self.rank,), "given-up")
        if verdict.reason == "silent" and self._hears_nobody(since_s):
            return Verdict((), "alone")
        return verdict

    def _hears_nobody(self, since_s: float) -> bool:
        """Whether several ranks were asked and none has answered since then: this rank may be the one cut off."""
        asked = set(self._asked_s) - self._left.keys() - self._dead
        return len(asked) > 1 and all(heard_s < since_s for heard_s in self._answered_s.values())

    def _asks_long(self, now: float) -> bool:
        """Whether several ranks were asked and have not answered for as long as a silent one is asked."""
        return sum(now - since >= self._still_s for since in self._asked_s.values()) > 1

    def _judge_late(self, waiting: Waiting, peers: set[int], observed: RankObserved, age_s: float) -> None:
        unknown = reach(peers, observed.waits) - self._answers.keys() - {self.rank}
        if unknown or not peers:
            return
        verdict = judge_late(peers, observed)
        if verdict.reason == "cycle" and self._is_moving(verdict.ranks):
            verdict = replace(verdict, reason="slow")
        is_stuck = verdict.reason == "cycle" and self._is_stuck(verdict.ranks)
        if (age_s >= self.late_s or is_stuck) and self._is_fresh(verdict.ranks):
            self._decide(verdict)
        elif verdict.reason in ("late", "slow") and not waiting.is_late:
            waiting.is_late = True
            self._warn(verdict, waiting.describe().what, age_s)

    def _warn(self, verdict: Verdict, what: str, age_s: float) -> None:
        log.warning(
            "%s alive but %s: this worker (rank %d) has waited %s for %.0f s%s. It goes on waiting, for %.0f s at "
            "most (late_s).",
            f"{name_ranks(verdict.ranks)} {'are' if len(verdict.ranks) > 1 else 'is'}",
            "slow, bytes still move between them" if verdict.reason == "slow" else "late",
            self.rank,
            what,
            age_s,
            f"; it is in {verdict.note}" if verdict.note else "",
            self.late_s,
        )

    def _is_fresh(self, ranks: Collection[int]) -> bool:
        """Whether all that is known of some ranks was said just now, or as lately as so many can be asked."""
        horizon_s = REPEAT_S * (2 + len(self._peers) / MOST_ASKED) + 0.5
        now = time.monotonic()
        return all(now - self._answered_s.get(r, 0.0) <= horizon_s for r in ranks if r != self.rank)

    def _is_stuck(self, ranks: Collection[int]) -> bool:
        """Whether nothing in the programs of some ranks, which wait for each other, can go on."""
        others = [self._answers[rank] for rank in ranks if rank != self.rank]
        is_blocked = self._is_blocked(time.monotonic())
        return is_blocked and all(a.is_blocked and a.age_s >= self.deadline_s for a in others)

    def _is_blocked(self, now: float) -> bool:
        """Whether this process's main thread waits, and no bytes move; only Linux tells of the latter."""
        is_still = not CAN_TELL or self._movement.is_still(now, for_s=self._still_s)
        return is_still and program.is_blocked()

    def _is_moving(self, ranks: Collection[int]) -> bool:
        """Whether bytes move on connections of any of some ranks: their waits may end yet."""
        if self._movement.moves(time.monotonic(), within_s=self._still_s):
            return True
        return any(self._answers[rank].is_moving for rank in ranks if rank != self.rank)

    def _lose(self, ranks: set[int]) -> None:
        if ranks:
            with self.changed:
                self.lost |= ranks
                self.changed.notify_all()

    def _decide(self, verdict: Verdict, *, is_told: bool = False) -> None:
        with self.changed:
            if self.verdict is not None:
                return
            self.verdict = verdict
            self.changed.notify_all()
        if not is_told and (message := self._verdict_message()) is not None:
            self._tell(message)
        for method in self._on_verdict:
            if wake := method():
                wake()

    # Sending

    def _tell(self, message: Message) -> None:
        for _ in range(2):  # a datagram may be lost; hearing it twice is harmless
            for rank, address in self._peers.items():
                if rank not in self._dead:
                    self._send_to(address, message)

    def _send_to(self, address: Address, message: Message) -> None:
        if self._seal is not None:
            self._ear.send(self._seal.close(message.to_bytes()), address)


def error_text(error: BaseException) -> str:
    """Returns "ValueError: bad batch", of bounded length."""
    return f"{type(error).__name__}: {error}"[:MAX_TEXT]
