"""What members of an elastic job tell each other when a new world begins, and what those who lack something are given.

A world begins when somebody died, left or joined. Each member then says how far it is; who is furthest is the
*source*. Whoever is behind, because a round reached the source and not it, takes the outcome from the source; whoever
is new takes all. So a round that lost a member counts for all or for none.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from tightwire.errors import MismatchError, TransportError
from tightwire.runtime.agreement import differences
from tightwire.transport import DONE, Transport, Work
from tightwire.transport.blame import name_ranks
from tightwire.transport.helpers import leave

LUGGAGE_TAG = 0
SIZE_BYTES = 8
PIECE_BYTES = 512 << 10
MOST = 1 << 62  # of anything that is counted
Read = TypeVar("Read")
log = logging.getLogger("tightwire")


@dataclass(frozen=True, kw_only=True)
class Card:
    """How far one member is.

    Attributes:
        agreed: rounds of whose outcome it has.
        begun: rounds that it has begun; one more than `agreed` within a round.
        landed: buckets of the next round whose means it has stepped with.
        step: optimizer steps made.
        served: see `Position`.
        is_new: whether it has trained with nobody yet, or others have gone on without it.
        world: the number of the world in which it trained last.
        trains: whether its data is not over.
        follows: whether it takes the outcome of every round, also once its data is over.
        meetings: how often it has met all others.
        plan: in force.
        owes: whether optimizers' states are still to be made equal, as this plan promises they are.
        uneven: whether rounds were made without those that are finished; see `Membership`.
        facts: a digest of what must be equal on all.
    """

    agreed: int = 0
    begun: int = 0
    landed: int = 0
    step: int = 0
    served: int = 0
    is_new: bool = True
    world: int = 0
    trains: bool = True
    follows: bool = False
    meetings: int = 0
    plan: str = ""
    owes: bool = False
    uneven: bool = False
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

    def strangers(self) -> list[int]:
        """Returns newcomers that are about to train something else."""
        facts = self.by_rank[self.source].facts
        return [rank for rank, card in enumerate(self.by_rank) if card.facts != facts]

    def _is_level(self, card: Card) -> bool:
        """Whether rounds that it agreed to are all in its parameters, as in those of the others."""
        return card.trains or card.follows or not any(other.uneven for other in self.by_rank)

    def _distance(self, card: Card) -> tuple[bool, bool, int, int, int, bool, bool, int]:
        rounds = card.agreed, card.landed, card.meetings
        return not card.is_new, self._is_level(card), *rounds, not card.owes, card.trains, card.step


def show_cards(transport: Transport, card: Card) -> Cards:
    """Tells all members, and returns what all tell. Contract: every member; blocks."""
    told = readable(transport.exchange(json.dumps(asdict(card)).encode()), Card.of)
    newest = max(other.world for other in told)
    return Cards(tuple(replace(other, is_new=other.is_new or other.world < newest) for other in told))


def readable(texts: Sequence[bytes], read: Callable[[bytes], Read | None]) -> list[Read]:
    """Returns what all members told.

    Raises:
        MismatchError: some told what cannot be read; on every member alike, and nothing of it is taken up.
    """
    found = [read(text) for text in texts]
    if strange := [rank for rank, one in enumerate(found) if one is None]:
        raise MismatchError(
            f"{name_ranks(strange)} told what cannot be read when members changed: damaged, or of another version of "
            "Tightwire. Nothing of it was taken up; give all workers the same version."
        )
    return [one for one in found if one is not None]


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


def hand_over(
    transport: Transport, source: int, lacking: Sequence[int], luggage: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Sends from the source to those that lack something; returns what was received, None where nothing was.

    Args:
        transport: between all members.
        source: the rank that has it.
        lacking: the ranks that get it.
        luggage: plain values and tensors; on the source alone.

    The source goes on at once, and a thread sends. Each that gets something passes it on to the next, in pieces, so
    that many take hardly longer than one. The wait for a piece is short: a state that takes minutes is not taken for
    ranks that wait for each other, and a sender that stops is noticed within the deadline.

    Contract: the source and those that lack something, at once; the latter block. Nothing is unpickled but plain values
    and tensors.

    Raises:
        TransportError: what came cannot be read, or there is no memory for it.
    """
    chain = [source, *lacking]
    if transport.rank not in chain:
        return None
    place = chain.index(transport.rank)
    after = chain[place + 1] if place + 1 < len(chain) else None
    if place == 0:
        if after is not None and luggage is not None:
            _send_behind(transport, pack(luggage), after)
        return None
    before, onward = chain[place - 1], _Onward(transport, after)
    size = torch.empty(SIZE_BYTES, dtype=torch.uint8)
    transport.irecv(size, before, LUGGAGE_TAG).wait()
    if (num_bytes := size_of(size.numpy().tobytes())) is None:
        raise TransportError(
            f"rank {before} told no size of the state that it was to send: damaged, or of another version of "
            "Tightwire; nothing of it was taken up."
        )
    onward.send(size)
    packed = room_for(num_bytes, before)
    for piece in packed.split(PIECE_BYTES):
        transport.irecv(piece, before, LUGGAGE_TAG).wait()
        onward.send(piece)
    onward.wait()
    return unpack(packed.numpy().tobytes())


class _Onward:
    """Pieces on their way to the next rank, if there is one; one at a time."""

    def __init__(self, transport: Transport, after: int | None) -> None:
        self._transport, self._after = transport, after
        self._last: Work = DONE

    def send(self, piece: Tensor) -> None:
        if self._after is not None:
            self._last.wait()
            self._last = self._transport.isend(piece, self._after, LUGGAGE_TAG)

    def wait(self) -> None:
        self._last.wait()


def _send_behind(transport: Transport, packed: Tensor, after: int) -> None:
    """Sends a state on a thread; where that fails, whoever waits for it notices, and so does this rank's next round."""

    def send() -> None:
        onward = _Onward(transport, after)
        try:
            size = packed.numel().to_bytes(SIZE_BYTES, "little")
            for piece in (torch.frombuffer(bytearray(size), dtype=torch.uint8), *packed.split(PIECE_BYTES)):
                onward.send(piece)
            onward.wait()
        except (TransportError, RuntimeError) as error:
            log.info("a state did not reach rank %d: %s", after, error)

    thread = threading.Thread(target=send, name="tightwire hands over", daemon=True)
    thread.start()
    leave(thread)


def unpack(data: bytes) -> dict[str, Any]:
    """Returns what was packed: plain values and tensors.

    Raises:
        TransportError: it packed nothing like it; nothing was taken up.
    """
    try:
        received = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(received, dict):
            raise TypeError("it is no dictionary")
    except Exception as error:  # torch.load and pickle promise no kinds
        raise TransportError(
            f"a state of {len(data)} bytes that another member sent cannot be read ({type(error).__name__}: {error}): "
            "damaged, or of another version of torch; nothing of it was taken up."
        ) from None
    return received


def require_whole(luggage: Mapping[str, Any], places: Mapping[str, Tensor]) -> None:
    """Makes sure that what the source sent has all its parts, and that its tensors fit this model.

    Args:
        luggage: as `Course` packs it.
        places: the model's parameters and buffers, by name.

    Raises:
        TransportError: it has not; nothing of it was taken up.
    """
    kinds = {"model": dict, "outcome": dict, "optimizers": list, "engine": dict, "step": int, "plans": list}
    kinds |= {"carried": dict, "step_s": float}
    wrong = [name for name, kind in kinds.items() if not isinstance(luggage.get(name), kind)]
    wrong += [name for name in ("observed", "told") if not isinstance(luggage.get(name, 0), list | None)]
    if not wrong:
        for name, tensor in [*luggage["model"].items(), *luggage["outcome"].items()]:
            if not isinstance(tensor, Tensor) or name not in places or places[name].shape != tensor.shape:
                wrong.append(str(name))
        plans, step = luggage["plans"], luggage["step"]
        wrong += [] if len(plans) == 2 and all(isinstance(plan, str) for plan in plans) else ["plans"]
        wrong += [] if 0 <= step < MOST else ["step"]
        wrong += [] if 0 <= luggage["step_s"] < MOST else ["step_s"]
        wrong += [] if all(isinstance(state, dict) for state in luggage["optimizers"]) else ["optimizers"]
    if wrong:
        raise TransportError(
            f"what another member sent to a newcomer does not fit this worker ({', '.join(wrong[:5])}): damaged, or of "
            "another version of Tightwire; nothing of it was taken up."
        )


def size_of(data: bytes) -> int | None:
    """Reads how many bytes follow; None for whatever is no such number."""
    size = int.from_bytes(data, "little")
    return size if len(data) == 8 and size < MOST else None


def room_for(num_bytes: int, sender: int) -> Tensor:
    """Returns memory for what a member is about to send.

    Raises:
        TransportError: there is not so much.
    """
    try:
        return torch.empty(num_bytes, dtype=torch.uint8)
    except RuntimeError:
        raise TransportError(
            f"rank {sender} is about to send a state of {num_bytes} bytes, for which there is no memory here."
        ) from None


def pack(luggage: Mapping[str, Any]) -> Tensor:
    """Returns plain values and tensors as bytes; see `unpack`."""
    file = io.BytesIO()
    torch.save(dict(luggage), file)
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def _facts_of(data: bytes) -> dict[str, str] | None:
    with suppress(ValueError, RecursionError):
        content = json.loads(data)
        if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
            return content
    return None


def _text(facts: Mapping[str, object]) -> bytes:
    return json.dumps({key: str(value) for key, value in facts.items()}, sort_keys=True).encode()
