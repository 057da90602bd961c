"""How far each member of an elastic job is when a new world begins, and who therefore lacks what.

A world begins when somebody died, left or joined. Each member then says how far it is; who is furthest is the
*source*. Whoever is behind, because a round reached the source and not it, takes the outcome from the source; whoever
is new takes all. So a round that lost a member counts for all or for none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Final

from tightwire.errors import MismatchError
from tightwire.runtime.agreement import differences
from tightwire.runtime.membership import Gathered
from tightwire.runtime.reading import MOST, readable
from tightwire.transport import Transport


@dataclass(frozen=True, kw_only=True)
class Card:
    """How far one member is.

    Attributes:
        agreed: rounds of whose outcome it has.
        begun: rounds that it has begun; one more than `agreed` within a round.
        landed: buckets of the next round whose means it has stepped with.
        step: optimizer steps made.
        served: see `Position`.
        is_in_step: whether its step for the round that it has begun is still to come, and changes something then.
        is_new: whether it has trained with nobody yet, or others have gone on without it.
        world: the number of the world in which it trained last.
        trains: whether its data is not over.
        follows: whether it takes the outcome of every round, also once its data is over.
        meetings: how often it has met all others.
        plan: in force.
        owes: whether optimizers' states are still to be made equal, as this plan promises they are.
        uneven: whether rounds were made without those that are finished; see `Membership`.
        gathers_at: the steps after which it is about to bring its part of a checkpoint to where all are gathered, and
            one more; 0: it is not.
        gathered: how often all have done so.
        gathered_at: the steps after which they did last, and one more; 0: never.
        gathered_there: how often after so many.
        most_steps: as `InForce.most_steps`.
        facts: a digest of what must be equal on all.
    """

    agreed: int = 0
    begun: int = 0
    landed: int = 0
    step: int = 0
    served: int = 0
    is_in_step: bool = False
    is_new: bool = True
    world: int = 0
    trains: bool = True
    follows: bool = False
    meetings: int = 0
    plan: str = ""
    owes: bool = False
    uneven: bool = False
    gathers_at: int = 0
    gathered: int = 0
    gathered_at: int = 0
    gathered_there: int = 0
    most_steps: int = 0
    facts: str = ""

    @classmethod
    def of(cls, data: bytes) -> Card | None:
        """Reads what a member told; None for whatever is no card, however malformed."""
        with suppress(ValueError, TypeError, RecursionError):
            content = json.loads(data)
            if isinstance(content, dict) and all(
                _is_like(content.get(n, v), v) for n, v in _DEFAULTS.items()
            ):
                return cls(**content)
        return None


_DEFAULTS: Final = asdict(Card())


def _is_like(value: object, default: object) -> bool:
    """Whether a value is of the default's type, and no number that nobody counts to."""
    if type(value) is not type(default):
        return False
    return not isinstance(value, int) or 0 <= value < MOST


@dataclass(frozen=True)
class Cards:
    """Those of all members, by rank: the same on every member."""

    by_rank: tuple[Card, ...]

    @property
    def source(self) -> int:
        """The rank that is furthest."""
        return max(range(len(self.by_rank)), key=lambda rank: (*self._distance(self.by_rank[rank]), -rank))

    @property
    def are_all_new(self) -> bool:
        """Whether the job begins."""
        return all(card.is_new for card in self.by_rank)

    def lacking(self) -> list[int]:
        """Returns the ranks that take the outcome of a round, or all, from the source."""
        furthest = self.by_rank[self.source]
        return [
            rank
            for rank, card in enumerate(self.by_rank)
            if rank != self.source
            and (
                card.is_new
                or (self._is_level(card) and (card.agreed, card.landed) < (furthest.agreed, furthest.landed))
                or card.meetings < furthest.meetings
                or card.plan != furthest.plan
                or (card.owes and not furthest.owes)
            )
        ]

    @property
    def is_round_lost(self) -> bool:
        """Whether all that train had begun the round after the last one agreed on: nobody has anything to repeat."""
        furthest = self.by_rank[self.source]
        old = [card for card in self.by_rank if card.trains and not card.is_new]
        return bool(old) and all(card.begun > furthest.agreed for card in old)

    @property
    def gathered(self) -> Gathered:
        """What was gathered, as far as anybody knows; who lacks that did its part."""
        old = [
            Gathered(card.gathered, card.gathered_at - 1, card.gathered_there)
            for card in self.by_rank
            if not card.is_new
        ]
        return max(old, default=Gathered())

    @property
    def most_steps(self) -> int:
        """The most that anybody has made, or is making; −1 where all are new."""
        return max((card.most_steps + 1 for card in self.by_rank if not card.is_new), default=-1)

    @property
    def gathers(self) -> tuple[int, int] | None:
        """To which rank all are to gather a checkpoint once more, no newcomer's, and after how many steps.

        None: nobody is within it.
        """
        old = [(rank, card) for rank, card in enumerate(self.by_rank) if not card.is_new]
        times = self.gathered.times
        at = [card.gathers_at - 1 for _, card in old if card.gathers_at and card.gathered == times]
        return (old[0][0], at[0]) if at else None

    def still_to_make(self, rank: int, *, as_source: bool) -> int:
        """Returns how many steps a member makes that others have made already; then all make the next together.

        Args:
            rank: of the member.
            as_source: whether it begins where newcomers do, not behind the step that it is in.
        """
        card, furthest = self.by_rank[rank], self.by_rank[self.source]
        peers = [other for other in self.by_rank if not other.is_new and _counts_as(other, furthest)]
        if not peers or not _counts_as(card, furthest):  # rounds of another plan
            return 0
        return max(map(self._made, peers)) - (self._made(card) if as_source else card.begun)

    def _made(self, card: Card) -> int:
        """Returns the rounds for which a member has made its steps, or makes none that changes anything."""
        return card.begun - (card.is_in_step and not self.is_round_lost)

    def strangers(self) -> list[int]:
        """Returns newcomers that are about to train something else."""
        facts = self.by_rank[self.source].facts
        return [rank for rank, card in enumerate(self.by_rank) if card.facts != facts]

    def _is_level(self, card: Card) -> bool:
        """Whether rounds that it agreed to are all in its parameters, as in those of the others."""
        return card.trains or card.follows or not any(other.uneven for other in self.by_rank)

    def _distance(self, card: Card) -> tuple[bool, bool, int, int, int, bool, bool, int]:
        # Who has met once more has all that anybody had before, and may count rounds of another plan.
        rounds = card.meetings, card.agreed, card.landed
        return not card.is_new, self._is_level(card), *rounds, not card.owes, card.trains, card.step


def _counts_as(card: Card, other: Card) -> bool:
    """Whether two members count the same rounds."""
    return (card.meetings, card.plan) == (other.meetings, other.plan)


def show_cards(transport: Transport, card: Card) -> Cards:
    """Tells all members, and returns what all tell. Contract: every member; blocks."""
    told = readable(transport.exchange(json.dumps(asdict(card)).encode()), Card.of)
    newest = max(other.world for other in told)
    return Cards(tuple(replace(other, is_new=other.is_new or other.world < newest) for other in told))


def digest_of_facts(facts: Mapping[str, object]) -> str:
    """Returns what is equal where all facts are."""
    return hashlib.sha256(_text(facts)).hexdigest()[:32]


def refuse_strangers(transport: Transport, cards: Cards, facts: Mapping[str, object]) -> bool:
    """Returns whether there are strangers, without whom the others go on.

    Contract: every member; blocks if there are.

    Raises:
        MismatchError: on a stranger, with the difference; where the job begins, on all alike.
    """
    strangers = cards.strangers()
    if not strangers:
        return False
    told = readable(transport.exchange(_text(facts)), _facts_of)
    if transport.rank in strangers or cards.are_all_new:
        whom = {rank: told[rank] for rank in sorted({cards.source, *strangers})}
        raise MismatchError(
            f"workers disagree about what to train; give every one the same. {differences(whom)}"
        )
    return True


def _facts_of(data: bytes) -> dict[str, str] | None:
    with suppress(ValueError, RecursionError):
        content = json.loads(data)
        if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
            return content
    return None


def _text(facts: Mapping[str, object]) -> bytes:
    return json.dumps({key: str(value) for key, value in facts.items()}, sort_keys=True).encode()
