"""What a process knows of other ranks: whom it has asked, who answered what and when, who has ended or left.

Without a clock, a thread or a socket: the caller says what it heard, and what time it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, final

from tightwire.transport.addresses import Address
from tightwire.transport.messages import Message

# A silent rank is asked so often; most ranks asked at a time, so that a thousand do not flood each other.
REPEAT_S: Final = 0.4
MOST_ASKED: Final = 32
MOST_WITNESSES: Final = 8


@final
class Inquiry:
    """Whom to ask when, and what is known by then.

    Attributes:
        rank: this process, in the world.
        peers: where each other rank listens.
        answers: what each said last, of those that answered since the inquiry began.
        dead: ranks whose process has ended.
        left: ranks that closed their transport or failed, and the error of those that failed.
        gave_up: who left, and had gone on without this rank.
    """

    def __init__(self, rank: int, *, patience_s: float) -> None:
        """Begins without any peers; `meet` follows.

        Args:
            rank: this process.
            patience_s: for so long a rank is asked before its silence counts.
        """
        self.rank = rank
        self.peers: dict[int, Address] = {}
        self.answers: dict[int, Message] = {}
        self.dead: set[int] = set()
        self.left: dict[int, str] = {}
        self.gave_up: set[int] = set()
        self._patience_s = patience_s
        self._by_address: dict[Address, int] = {}
        self._asked_s: dict[int, float] = {}  # since when without an answer
        self._asked_last_s: dict[int, float] = {}
        self._answered_s: dict[int, float] = {}

    def meet(self, addresses: Mapping[int, Address]) -> None:
        """Learns where the other ranks listen."""
        self.peers = {rank: where for rank, where in addresses.items() if rank != self.rank}
        self._by_address = {where: rank for rank, where in self.peers.items()}

    # What is heard

    def note_closed(self, address: Address) -> None:
        """Notes that the process that listened at an address has ended."""
        if (rank := self._by_address.get(address)) is not None:
            self.dead.add(rank)

    def note_left(self, message: Message) -> None:
        """Notes that a rank left, or failed."""
        self.left[message.sender] = message.note
        if message.gave_up:
            self.gave_up.add(message.sender)

    def note_answer(self, message: Message, now: float) -> None:
        """Notes what a rank that lives says."""
        rank = message.sender
        if self.hears_nobody(now - self._patience_s) and self._asks_long(now):
            # This one's own link was down: the silence of the others, who answer a moment later, counts anew.
            self._asked_s = dict.fromkeys(self._asked_s, now)
        self.answers[rank], self._answered_s[rank] = message, now
        self._asked_s.pop(rank, None)
        self.dead.discard(rank)
        if message.note:
            self.left[rank] = message.note
        else:
            self.left.pop(rank, None)

    # Whom to ask

    def ask(
        self, often: Collection[int], seldom: Collection[int], now: float, *, seldom_s: float
    ) -> list[int]:
        """Returns whom to ask now, and notes that they are asked: again and again those that have not answered.

        Args:
            often: asked every `REPEAT_S`.
            seldom: asked every `seldom_s`, and as often as the others while they do not answer.
            now: the time.
            seldom_s: see above.
        """

        def is_due(rank: int) -> bool:
            repeat_s = REPEAT_S if rank in often or rank in self._asked_s else seldom_s
            return now - self._asked_last_s.get(rank, 0.0) >= repeat_s

        due = [
            r for r in {*often, *seldom, *self._witnesses(now)} - self.dead if r in self.peers and is_due(r)
        ]
        due.sort(key=lambda r: (self._asked_last_s.get(r, 0.0), (r - self.rank) % self._size))
        for rank in due[:MOST_ASKED]:
            self._asked_last_s[rank] = now
            self._asked_s.setdefault(rank, now)
        return due[:MOST_ASKED]

    def _witnesses(self, now: float) -> list[int]:
        """Returns ranks to ask where one does not answer: if they do not either, it is this rank that is cut off."""
        if not any(now - since > 2 * REPEAT_S for since in self._asked_s.values()):
            return []
        return [(self.rank + step) % self._size for step in range(1, min(MOST_WITNESSES, self._size - 1) + 1)]

    def excuse(self, away_s: float) -> None:
        """Leaves out a time in which this process did not run: that no answer was heard then is no silence."""
        self._asked_s = {rank: since_s + away_s for rank, since_s in self._asked_s.items()}
        self._answered_s = {rank: heard_s + away_s for rank, heard_s in self._answered_s.items()}

    def end(self) -> None:
        """Ends the inquiry: what was asked and said until now is no evidence later."""
        self._asked_s.clear()
        self.answers.clear()

    # What is known

    @property
    def _size(self) -> int:
        return len(self.peers) + 1

    def silent(self, now: float, *, patience_s: float) -> set[int]:
        """Returns the ranks that were asked for so long, and whose process has not ended."""
        return {r for r, since in self._asked_s.items() if now - since >= patience_s} - self.dead

    def answered_s(self, rank: int, default_s: float) -> float:
        """Returns when a rank answered last."""
        return self._answered_s.get(rank, default_s)

    def hears_nobody(self, since_s: float) -> bool:
        """Whether several ranks were asked and none has answered since then: this rank may be the one cut off."""
        asked = set(self._asked_s) - self.left.keys() - self.dead
        return len(asked) > 1 and all(heard_s < since_s for heard_s in self._answered_s.values())

    def _asks_long(self, now: float) -> bool:
        """Whether several ranks were asked and have not answered for as long as a silent one is asked."""
        return sum(now - since >= self._patience_s for since in self._asked_s.values()) > 1

    def has_asked_all(self, ranks: Collection[int], now: float, *, for_s: float) -> bool:
        """Whether all of some ranks were asked for so long, and none has answered."""
        return all(now - self._asked_s.get(rank, now) >= for_s for rank in ranks)

    def is_fresh(self, ranks: Collection[int], now: float) -> bool:
        """Whether all that is known of some ranks was said just now, or as lately as so many can be asked."""
        horizon_s = REPEAT_S * (2 + len(self.peers) / MOST_ASKED) + 0.5
        return all(now - self._answered_s.get(r, 0.0) <= horizon_s for r in ranks if r != self.rank)
