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
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import replace
from typing import Final, final

from tightwire.errors import PeerError
from tightwire.transport import program
from tightwire.transport.addresses import Address
from tightwire.transport.blame import Verdict, Wait, accuse, reach
from tightwire.transport.ear import Ear
from tightwire.transport.inquiry import REPEAT_S, Inquiry
from tightwire.transport.messages import MAX_TEXT, Message
from tightwire.transport.seal import Seal
from tightwire.transport.waiting import Waiting, WaitJudge

LATE_FACTOR: Final = 20.0
# Whoever looks after suspicious waits does so several times a second; what is longer than this between two looks, it
# was stopped or starved itself.
AWAY_S: Final = 2 * REPEAT_S


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
        # A wait is quiet until then; who is silent is asked, and who is still is looked at, for the rest.
        quiet_s = max(deadline_s - 15.0, deadline_s / 2)
        patience_s = deadline_s - quiet_s
        self._inquiry = Inquiry(rank, patience_s=patience_s)
        self._judge = WaitJudge(
            self._inquiry, deadline_s=deadline_s, late_s=self.late_s, patience_s=patience_s
        )
        self._waits: dict[object, Waiting] = {}
        self._silent: frozenset[int] = frozenset()  # as was heard since the last look
        self._looked_s: float | None = None  # while there are suspicious waits
        self._seal: Seal | None = None
        self._number = itertools.count(1)
        self._note = ""
        self._has_left = False
        self._on_verdict: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._ear = Ear(host, tick_s=min(1.0, deadline_s / 8), soon_s=REPEAT_S / 4)
        self.address: Final[Address] = self._ear.address

    def meet(self, addresses: Mapping[int, Address], seal: Seal) -> None:
        """Learns where the other ranks listen, and the job's seal; from now on they are listened to."""
        self._seal = seal
        self._inquiry.meet(addresses)
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
        """Whether most others have left this world, or end it for this rank: they are in another one, if anywhere."""
        is_blamed = self.verdict is not None and self.rank in self.verdict.ranks
        return is_blamed or 2 * len(self._inquiry.left) > len(self._inquiry.peers)

    def hear_silent(self, ranks: Collection[int]) -> None:
        """Hears from one who listens all the time that ranks are silent: whoever is waited for is gone then.

        Returns at once: it is the thread here that ends waits, in calls of Gloo that may take long.
        """
        self._silent = frozenset(ranks)
        self._ear.wake()

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
        return Wait(frozenset(self._inquiry.peers), what)

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
        for rank in self.lost & self._inquiry.peers.keys():  # if it is stopped, it reads this when it goes on
            self._send_to(self._inquiry.peers[rank], replace(last_word, gave_up=True))
        self._has_left = True
        with self.changed:
            self.changed.notify_all()
        self._ear.close()

    # What the ear hears

    def hear(self, data: bytes, sender: Address) -> None:
        """Takes a datagram, if it is of this job."""
        content = self._seal.open(data) if self._seal is not None else None
        message = None if content is None else Message.of(content, len(self._inquiry.peers) + 1)
        if message is None or message.sender == self.rank:
            return
        match message.kind:
            case "ask":
                self._send_to(sender, self._answer(message))
            case "here":
                self._note_answer(message)
            case "left":
                self._inquiry.note_left(message)
            case "done":
                self.announced[message.sender] = message.done
            case "verdict":
                self._decide(Verdict(message.waits, message.reason, message.note), is_told=True)

    def note_closed(self, address: Address) -> None:
        """Notes that the process that listened at an address has ended."""
        self._inquiry.note_closed(address)

    def _note_answer(self, message: Message) -> None:
        rank = message.sender
        self._inquiry.note_answer(message, time.monotonic())
        self.announced[rank] = message.done
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
            is_blocked=self._judge.is_blocked(now),
            is_moving=self._judge.moves(now),
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
        self._blame_silent()
        if self._looked_s is not None and now - self._looked_s > AWAY_S:
            self._inquiry.excuse(now - self._looked_s - AWAY_S)
        suspicious = [w for w in list(self._waits.values()) if self._judge.is_suspicious(w, now, self.lost)]
        if not suspicious or self.verdict is not None:
            self._inquiry.end()
            self._judge.rest()
            self._looked_s = None
            return False
        self._looked_s = now
        self._judge.look(now)
        self._ask(suspicious, now)
        for waiting in sorted(suspicious, key=lambda w: w.began_s):
            if self.verdict is None:
                finding = self._judge.judge(waiting, now, self.lost)
                if finding.verdict is not None:
                    self._decide(finding.verdict)
                self._lose(finding.lost)
        return True

    def _blame_silent(self) -> None:
        """Blames those that are said to be silent and are waited for."""
        silent, self._silent = self._silent, frozenset()
        waits = [waiting.describe().peers for waiting in list(self._waits.values()) if waiting.ends_run]
        if gone := silent & set().union(*waits) - self._inquiry.left.keys():
            self._decide(Verdict(tuple(sorted(gone)), "silent"))

    def _ask(self, suspicious: Collection[Waiting], now: float) -> None:
        """Asks those on whom waits depend; seldom where a wait has no end."""
        often = {rank for waiting in suspicious if waiting.has_end for rank in self._depends(waiting)}
        seldom = {rank for waiting in suspicious if not waiting.has_end for rank in self._depends(waiting)}
        due = self._inquiry.ask(often, seldom, now, seldom_s=max(REPEAT_S, self.deadline_s / 8))
        for rank in due:
            question = Message(kind="ask", sender=self.rank, number=next(self._number))
            self._send_to(self._inquiry.peers[rank], question)
        if due:
            time.sleep(0.002)  # within a round trip a closed port is known
        self._ear.catch_up(self)

    def _depends(self, waiting: Waiting) -> set[int]:
        """Returns the ranks that a wait depends on, also through others unless these go on without whom is gone."""
        peers = waiting.describe().peers
        if not waiting.ends_run:
            return set(peers) - self.lost
        return reach(peers, {rank: answer.waits for rank, answer in self._inquiry.answers.items()})

    def _lose(self, ranks: Set[int]) -> None:
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
            for rank, address in self._inquiry.peers.items():
                if rank not in self._inquiry.dead:
                    self._send_to(address, message)

    def _send_to(self, address: Address, message: Message) -> None:
        if self._seal is not None:
            self._ear.send(self._seal.close(message.to_bytes()), address)


def error_text(error: BaseException) -> str:
    """Returns "ValueError: bad batch", of bounded length."""
    return f"{type(error).__name__}: {error}"[:MAX_TEXT]
