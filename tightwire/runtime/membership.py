"""Who takes part: asked in one place, by every engine, with the message that begins or accompanies a round."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tightwire.averaging import Averager
from tightwire.errors import MismatchError, PeerError
from tightwire.runtime.agreement import copy_from_longest, differences
from tightwire.sync.roll import CHECKED, DIGIT, WHO_FIELDS, roll_fields
from tightwire.transport import Transport
from tightwire.transport.blame import name_ranks
from tightwire.transport.door import Door

log = logging.getLogger("tightwire")
MEMBER_LOST = "a member was lost in what was under way: %s"
MEMBERS_CHANGED = "members changed after step %d: %d now, this worker is rank %d%s."
REMEDY = (
    "Give every rank the same rates at the same time; a rank that leaves out a backward pass calls run.skip() in its "
    "place, and then steps as the others do; a forward pass of one rank that is not for training (an evaluation, a "
    "sample) runs under torch.no_grad(), in model.eval() or inside run.evaluating()."
)


class MembersChangedError(Exception):
    """Members changed while they were to do something together that is not repeated; see `Course.undisturbed`."""


@dataclass(frozen=True)
class Standing:
    """What must be equal on all ranks that train, wherever they meet.

    Attributes:
        skipped: forward passes whose outputs no backward pass reached.
        digest: of all hyper-parameters, 24 bits.
    """

    skipped: int = 0
    digest: int = 0

    @property
    def folded(self) -> int:
        """16 bits that differ where the standings do, but for one pair in 65 thousand."""
        return (self.digest ^ self.digest >> 8 ^ self.skipped * 0x9E37) & 0xFFFF

    def digits(self) -> list[float]:
        """Returns numbers below `DIGIT` that differ where the standings do, but for one pair in 16 million."""
        parts = [self.skipped, *(self.digest >> shift for shift in (0, 6, 12, 18))]
        return [float(part % DIGIT) for part in parts]


@dataclass(frozen=True, kw_only=True)
class Called:
    """What all ranks together brought to a roll: the same on every rank.

    Attributes:
        present: how many train; the others' data is over, and they take part until all are done.
        weight: sum of weights, in those of the roll before.
        leaving: how many leave for good.
        own: sums of the round's own numbers.
    """

    present: int
    weight: float
    leaving: int
    own: Tensor


class Gathered(NamedTuple):
    """How often all have gathered for something, after how many steps last (-1: never), and how often after so many."""

    times: int = 0
    at: int = -1
    there: int = 0

    def again(self, at: int) -> Gathered:
        """Returns the same once all have once more, after so many steps."""
        return Gathered(self.times + 1, at, 1 + (self.there if at == self.at else 0))


class Occasion:
    """Something for which all members gather, when their loops come to it.

    Attributes:
        gathered: how often they have.
        spares: how often this member leaves it out when its loop comes to it, for the others are past it; None: it is
            new, and finds out when it comes to the first.
    """

    def __init__(self) -> None:
        """Has not occurred."""
        self.gathered = Gathered()
        self.spares: int | None = 0

    def leaves_out(self, at: int) -> bool:
        """Whether this member, which comes to it after so many steps, goes on without. Once each time."""
        if self.spares is None:
            self.spares = self.gathered.there if self.gathered.at == at else 0
        is_spared = self.spares > 0
        self.spares -= is_spared
        return is_spared

    def note(self, at: int) -> None:
        """Counts it, after so many steps."""
        self.gathered = self.gathered.again(at)


def _nothing(standing: Standing) -> Mapping[str, str]:
    return {}


def _hear_nothing(told: Future[Called], trains: bool) -> None:
    pass


def _leave_buffers(longest: int) -> None:
    pass


def _no_buffers() -> None:
    pass


@dataclass
class Membership:
    """Who trains, who is finished, who leaves: a value with a number.

    *Static*: members are those that the launcher started, less those that left. *Elastic*: a door lets members in, and
    a death is survived. A member that is *finished* takes part in the others' rounds, counting nothing, until all are.
    Members change between rounds, never within one, and all of them alike.

    Attributes:
        ranks: the members, as the launcher numbers them, in their present order.
        number: grows whenever members change.
        standing: tells what must be equal; asked at every roll.
        describe: tells the same in words, for the error.
        hear: is given what every roll of all members will tell, and whether this worker trains.
        settle: called on a finished member when it has taken part in a round.
        conclude: given the rank that trained longest, once all are finished. Every member; blocks.
        gather: brings the parts of all to one rank. Every member; blocks.
        gathers_at: the steps after which this worker is about to, or is within it, by `InForce.most_steps`; None: it is
            not.
        comes_at: the steps after which this worker comes to what all do together; None: it does nothing of the kind, or
            comes to an end of training.
        checkpoints: those that all have gathered.
        gathers_to: the rank that is brought them: 0, but for what lost a member and is repeated with newcomers.
        leaving: whether this worker leaves with the next round.
        calls_meeting: whether a round said that somebody leaves, so that all must meet now.
        meetings: how often all have met.
        uneven: whether rounds were made, since all met last, without workers that are finished.
        door: lets members in; None where they are static.
        serves: whether this member of an elastic job is a dedicated server, for as long as it lives; None: undecided.
        renew: goes on among those who are there, after somebody was lost in what was under way.
        renewals: how often members changed.
        lost_rounds: how many rounds were dropped because they lost a member.
        usual_weight: about what workers weigh, the same on all; leftovers of what was sent are in its units.
    """

    ranks: tuple[int, ...]
    number: int = 0
    standing: Callable[[], Standing] = Standing
    describe: Callable[[Standing], Mapping[str, str]] = _nothing
    hear: Callable[[Future[Called], bool], None] = _hear_nothing
    settle: Callable[[], None] = _no_buffers
    conclude: Callable[[int], None] = _leave_buffers
    gather: Callable[[], None] = _no_buffers
    gathers_at: int | None = None
    comes_at: int | None = None
    checkpoints: Occasion = field(default_factory=Occasion)
    gathers_to: int = 0
    leaving: bool = False
    calls_meeting: bool = False
    uneven: bool = False
    meetings: int = 0
    door: Door | None = None
    serves: bool | None = None
    renew: Callable[[], None] = _no_buffers
    renewals: int = 0
    lost_rounds: int = 0
    usual_weight: float = 1.0
    _lost: PeerError | None = None  # in a round that can wait
    _weight: float | None = None

    @property
    def is_elastic(self) -> bool:
        """Whether members may die and join."""
        return self.door is not None

    @property
    def wants_meeting(self) -> bool:
        """Whether this worker leaves, or knows of one that waits to be let in."""
        return self.leaving or (self.door is not None and (self.door.notice.is_set() or self.door.knocks()))

    @property
    def postpones(self) -> bool:
        """Whether rounds are put off: a member is lost, and going on without it would still mean to wait.

        Raises:
            PeerError: the others can go on now.
        """
        if self.door is None:
            return False
        if self._lost is None:
            if not (ranks := [rank for rank in self.door.gone() if rank in self.ranks]):
                return False
            if self.door.connects():
                return True
            named = name_ranks(ranks)
            self._lost = PeerError(f"{named} let nobody hear anything any more before a round began.", ranks)
            log.info(MEMBER_LOST, self._lost)
            raise self._lost
        if self.door.counts(self._lost.ranks):
            return True
        raise self._lost

    def guard(self, act: Callable[[], None], *, can_wait: bool = False) -> None:
        """Does something that every member does; where it loses one, goes on among the others without the rest of it.

        Args:
            act: what they do.
            can_wait: whether training may go on meanwhile, and `postpones` is asked before the next round.

        Raises:
            PeerError: members are static.
        """
        try:
            act()
        except PeerError as error:
            if self.door is None:
                raise
            if error is not self._lost:
                log.info(MEMBER_LOST, error)
            if can_wait and self._lost is None and error.ranks and self.door.counts(error.ranks):
                self._lost = error
            else:
                self.renew()

    @contextmanager
    def coming(self, at: int) -> Iterator[None]:
        """Inside, this worker comes to what all do together after so many steps."""
        self.comes_at = at
        try:
            yield
        finally:
            self.comes_at = None

    def weigh(self, weight: float) -> None:
        """Takes this worker's weight in the next mean; see `Run.weigh`."""
        self._weight = weight

    def take_share(self) -> float:
        """Returns by what this worker multiplies its part of a mean: its weight over the usual one. Once per mean."""
        share = 1.0 if self._weight is None else self._weight / self.usual_weight
        self._weight = None
        return share

    def note(self, called: Called, size: int) -> None:
        """Takes in who was there."""
        self.calls_meeting = self.calls_meeting or called.leaving > 0
        self.uneven = self.uneven or 0 < called.present < size

    def note_weight(self, called: Called) -> None:
        """Takes in the sum of weights, so that what is sent keeps its size. At the same point on every rank.

        Where some skip a pass and the others weigh as usual, that stays so: `called.own` tells who used each parameter.
        """
        used = float(called.own.max()) if called.own.numel() else 0.0
        if used < called.present - 0.5 and math.isclose(called.weight, used, rel_tol=1e-4):
            return
        if called.weight > 0 and called.present:
            self.usual_weight *= called.weight / called.present

    def met(self) -> None:
        """Begins anew: all are here, and nothing is under way."""
        self.calls_meeting = self.uneven = False
        self.meetings += 1

    def without(self, leaving: Sequence[int]) -> None:
        """Goes on without some members, by their present numbers."""
        self.ranks = tuple(rank for number, rank in enumerate(self.ranks) if number not in leaving)
        self.number += 1
        self.renewals += 1

    def begin_anew(self, size: int, meetings: int, uneven: bool) -> None:
        """Goes on with other members, who take up their count of meetings from the furthest, and what any knows."""
        self.ranks = tuple(range(size))
        self.number += 1
        self.renewals += 1
        self.meetings = meetings + 1
        self.calls_meeting, self.uneven = False, uneven
        self._lost = None
        self.usual_weight = 1.0

    def even_out(self, transport: Transport, tensors: Iterable[Tensor], rounds: int) -> int:
        """Makes tensors those of the rank that trained longest, where some trained on alone; returns the bytes sent.

        Contract: every member, once all are finished; blocks if `uneven`.
        """
        return copy_from_longest(transport, tensors, rounds) if self.uneven else 0


class Roll:
    """Calls the roll of one round after the other, on a channel of its own.

    Contract: every rank of the transport, in the same order; blocks; sends `bytes_sent` per call.

    Attributes:
        bytes_sent: in one call.
    """

    def __init__(
        self,
        membership: Membership,
        transport: Transport,
        control: Averager,
        own: int,
    ) -> None:
        """Takes what adds up.

        Args:
            membership: is told of every call.
            transport: on which `control` runs; ranks that differ tell each other on it how.
            control: averages `roll_fields(own)` float32, exactly.
            own: how many numbers of its own each round has.
        """
        self.bytes_sent = control.bytes_sent
        self._membership, self._transport, self._control, self._own = membership, transport, control, own

    def bring(
        self,
        own: Tensor | None = None,
        *,
        present: bool,
        weight: float | None = None,
        leaving: bool = False,
        compares: bool = True,
    ) -> Callable[[], Called]:
        """Prepares a call with what is so now; what it returns makes it, on any thread.

        Whoever waits for it then calls `note`, at the same step on all ranks: they may hear at different ones.

        Args:
            own: of this rank; by default zeros. Read when the call is made.
            present: whether this worker trains; what must be equal is compared among those.
            weight: in the round's mean; by default 1 if this worker is present.
            leaving: whether this worker is about to leave for good.
            compares: whether what must be equal is so now: not where ranks are at steps of their own. The same on all.
        """
        leaving = leaving or (present and self._membership.wants_meeting)
        standing = self._membership.standing() if present and compares else None
        digits = standing.digits() if standing else [0.0] * CHECKED
        who = [float(present), float(present) if weight is None else weight, float(leaving)]
        told = torch.tensor([*who, *digits, *(digit * digit for digit in digits)])
        brought = torch.zeros(self._own) if own is None else own
        heard: Future[Called] = Future()
        if self._transport.size == len(self._membership.ranks):
            self._membership.hear(heard, present)

        def call() -> Called:
            try:
                called = self._add_up(torch.cat([told, brought]), standing)
            except BaseException as error:
                heard.set_exception(error)  # whoever waits for it must learn of it
                raise
            heard.set_result(called)
            return called

        return call

    def call(
        self,
        own: Tensor | None = None,
        *,
        present: bool,
        weight: float | None = None,
        leaving: bool = False,
        compares: bool = True,
    ) -> Called:
        """Returns the sums of what all ranks bring; see `bring`.

        Raises:
            MismatchError: on every rank alike, naming who differs and in what.
        """
        called = self.bring(own, present=present, weight=weight, leaving=leaving, compares=compares)()
        self.note(called)
        return called

    def note(self, called: Called) -> None:
        """Takes in who was there, so that all meet where one is about to leave."""
        self._membership.note(called, self._transport.size)

    def close(self) -> None:
        """Gives the channel back."""
        self._transport.close()

    def until_all_are_finished(self, take_part: Callable[[Called], None], own: Tensor | None = None) -> int:
        """Takes part in the rounds of ranks that still train; returns the bytes sent in rolls, the last included."""
        calls = 1
        while (called := self.call(own, present=False)).present:
            calls += 1
            take_part(called)
            self._membership.settle()
        return calls * self.bytes_sent

    def _add_up(self, values: Tensor, standing: Standing | None) -> Called:
        assert values.numel() == roll_fields(self._own)
        self._control.run(values, values, seed=0)
        told, own = (values * self._transport.size).split([WHO_FIELDS + 2 * CHECKED, self._own])
        present, weight, leaving, *sums = told.tolist()
        called = Called(present=round(present), weight=weight, leaving=round(leaving), own=own)
        self._compare(called.present, [round(number) for number in sums], standing)
        return called

    def _compare(self, present: int, sums: Sequence[int], standing: Standing | None) -> None:
        """Sums of n equal numbers and of their squares: n·Σd² = (Σd)²."""
        if all(
            present * squares == of * of for of, squares in zip(sums[:CHECKED], sums[CHECKED:], strict=True)
        ):
            return
        facts = dict(self._membership.describe(standing)) if standing else {}
        told = [json.loads(other) for other in self._transport.exchange(json.dumps(facts).encode())]
        by_rank = {rank: facts for rank, facts in zip(self._membership.ranks, told, strict=False) if facts}
        raise MismatchError(f"ranks that train together have parted: {differences(by_rank)} {REMEDY}")
