"""One worker's way into the next world of an elastic job, among those who live and those who came.

It knocks, shows its card, gives or takes what somebody lacks, and goes on where it was: see `cards`, `luggage`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from tightwire.errors import PeerError
from tightwire.plan import Phases, Plan
from tightwire.runtime.cards import Card, Cards, digest_of_facts, refuse_strangers, show_cards
from tightwire.runtime.carried import Carried
from tightwire.runtime.engines import Engine
from tightwire.runtime.engines.engine import Position
from tightwire.runtime.in_force import InForce
from tightwire.runtime.luggage import Luggage, packed_model
from tightwire.runtime.meeting import Told
from tightwire.runtime.membership import MEMBERS_CHANGED
from tightwire.runtime.reading import MOST
from tightwire.runtime.relay import hand_over
from tightwire.transport import Counting, Transport
from tightwire.transport.door import Door
from tightwire.transport.reach import reaching

log = logging.getLogger("tightwire")


@dataclass(frozen=True)
class Arrival:
    """When a newcomer came among others, what a step takes them, and at which step they were."""

    at_s: float
    step_s: float
    step: int

    def missed(self, now_s: float, step: int) -> int:
        """Returns how many steps others have made more; none where nobody knows what a step takes."""
        return max(0, int((now_s - self.at_s) / self.step_s) - (step - self.step)) if self.step_s else 0


@dataclass(frozen=True)
class Former:
    """The engine of the world before, where it was, and what it left: nothing on who is new."""

    engine: Engine
    position: Position
    state: Mapping[str, Any]


class Renewal:
    """Takes a worker from world to world.

    Attributes:
        trains: whether this worker's data is not over.
        told: at the last meeting; whoever missed it is given it.
        has_missed: whether, at the last renewal, others had met once more than this worker.
    """

    def __init__(self, now: InForce, facts: Mapping[str, object], carried: Carried | None) -> None:
        """Begins outside.

        Args:
            now: is changed.
            facts: what must be equal on all members, also newcomers.
            carried: what newcomers are given.
        """
        self.trains, self.has_missed = True, False
        self.told: Told | None = None
        self._now, self._facts, self._carried = now, facts, carried
        self._is_new = True
        self._world = 0  # in which this worker trained last
        self._is_round_lost = False  # that was under way at the last renewal
        self._served = 0  # the last round of servers that was in anything that any member had then
        self._gathers = False  # at once, among those who are there now
        self._repeats = Position(0, 0)  # of whom this worker goes on as
        self._arrival: Arrival | None = None  # of this worker among others, until its first round
        self._began: tuple[Engine, int] | None = (
            None  # engine and most steps after the last change of members
        )

    def come_together(self, at: int) -> bool:
        """Returns whether all come to what they do together after so many steps; the same on all.

        When members change, who is within it goes on without the others, so that those go without it who come to it
        later, in the step that some were making; and a newcomer may count steps as made up to the next round.
        """
        if self._began is None:
            return True
        engine, most_steps = self._began
        is_level = engine is not self._now.engine or engine.rounds > 0 or not engine.skips_ahead
        return at > most_steps and (is_level or most_steps < 0)

    def renew(self) -> None:
        """Goes on in another world; what was under way is repeated there or dropped on all alike.

        Every member that lives.

        Raises:
            PeerError: nobody lets this worker in.
            MismatchError: this worker is new, and is about to train something else.
        """
        now = self._now
        door = now.context.membership.door
        assert door is not None
        self.has_missed = False
        while True:
            former = self._end_engine()
            while not self._enter(door, former):
                pass
            try:
                self._is_new = False
                now.settle_states()
                now.engine.go_on(self._repeats, is_lost=self._is_round_lost)
                if self._carried is not None:
                    # Only now: in a round that is repeated rates are those of before.
                    self._carried.catch_up(is_within=now.is_stepping or former.position.is_in_step)
                if self._gathers:
                    self._gather()
                return
            except PeerError as error:
                log.info("another member was lost: %s", error)

    def _gather(self) -> None:
        """Has all gather a checkpoint again, also those who are new: others come to it by themselves, from a step."""
        self._now.context.membership.gather()
        if self._arrival is not None:  # nobody trained meanwhile
            self._arrival = replace(self._arrival, at_s=time.perf_counter())

    def count_on(self) -> bool:
        """Counts steps that others made while this worker, which is new, was slower; returns whether there are any.

        Up to its first round, where all are at one step.
        """
        now = self._now
        if now.engine.rounds:
            self._arrival = None
        if self._arrival is None or now.next_plan != now.plan:  # first the next phase begins
            return False
        made = now.most_steps
        most = min((end for end in now.phases.ends if end > made), default=MOST) - 1 - made
        skipped = now.engine.skip_ahead(min(most, self._arrival.missed(time.perf_counter(), now.step)))
        self._count(skipped)
        return skipped > 0

    def _count(self, steps: int) -> None:
        """Counts steps as made that others made."""
        self._now.step += steps
        if self._carried is not None:
            self._carried.count_on(steps)

    def _end_engine(self) -> Former:
        """Ends what is under way, and returns what is left of it."""
        now = self._now
        engine, position = now.engine, now.engine.position()
        if self._is_new:
            return Former(engine, position, {})
        now.context.transport.inner.close()  # so that nothing waits for ever, here or elsewhere
        engine.close()
        state = engine.salvage()
        now.record.begin_plan(engine)
        return Former(engine, position, state)

    def _enter(self, door: Door, former: Former) -> bool:
        """Takes this worker into the next world; returns whether it came about."""
        # Who has trained before is not a worker of a job that is still to begin, whatever engine it has just now.
        admission = door.enter(max(former.position.agreed, int(self._world > 0)))
        transport = admission.transport
        try:
            card = self._card(former)
            cards = show_cards(transport, card)
            self._is_new = cards.by_rank[transport.rank].is_new
            self.has_missed |= card.meetings < cards.by_rank[cards.source].meetings
            if refuse_strangers(transport, cards, self._facts):
                return False
            self._settle(transport, cards, former)
            # Only now: who lost somebody before it had all that it lacked lacks it still.
            self._world, self._now.owes_states = admission.number, cards.by_rank[cards.source].owes
            self._take_gathering(cards)
            self._began = self._now.engine, cards.most_steps
        except PeerError as error:
            log.info("another member was lost: %s", error)
            return False
        door.watches = transport.rank == 0
        if not self._is_new:
            log.warning(
                MEMBERS_CHANGED,
                self._now.step,
                transport.size,
                transport.rank,
                "; the round under way is dropped on all" if self._is_round_lost else "",
            )
        return True

    def _take_gathering(self, cards: Cards) -> None:
        """Takes in whether a checkpoint is still to be gathered, and to which rank."""
        membership = self._now.context.membership
        membership.checkpoints.gathered = cards.gathered
        membership.gathers_to, at = cards.gathers or (0, None)
        if at is None:
            membership.gathers_at = None
        elif self._is_new:  # one that begins at an earlier step comes to it by itself
            membership.gathers_at = at if self._now.most_steps >= at else None
        if self._is_new:
            membership.checkpoints.spares = None
        self._gathers = membership.gathers_at is not None

    def _card(self, former: Former) -> Card:
        now, position, membership = self._now, former.position, self._now.context.membership
        return Card(
            agreed=position.agreed,
            begun=position.begun,
            landed=position.landed,
            step=now.step,
            served=position.served,
            is_in_step=position.is_in_step and not position.is_dropped,
            is_new=self._is_new,
            world=self._world,
            trains=self.trains,
            follows=former.engine.finished_follow,
            meetings=membership.meetings,
            plan=str(now.plan),
            owes=now.owes_states,
            uneven=membership.uneven,
            gathers_at=0 if membership.gathers_at is None else membership.gathers_at + 1,
            gathered=membership.checkpoints.gathered.times,
            gathered_at=membership.checkpoints.gathered.at + 1,
            gathered_there=membership.checkpoints.gathered.there,
            most_steps=now.most_steps,
            facts=digest_of_facts(self._facts),
        )

    def _settle(self, transport: Transport, cards: Cards, former: Former) -> None:
        """Gives and takes what members lack, and builds the engine."""
        now, furthest, began_s = self._now, cards.by_rank[cards.source], time.perf_counter()
        self._is_round_lost = cards.is_round_lost
        self._served = max(card.served for card in cards.by_rank)
        received = self._exchange(transport, cards, former)
        self._move(transport, cards)
        self._arrival, self._repeats = None, former.position
        if received is None:
            now.build_engine()
            if not self._is_new and former.state:  # none, where the loss was in the midst of a change of plan
                now.engine.take_up(former.state, furthest.agreed)
            self._note_where_all_begin(cards, former, as_source=self._is_new)
            return
        takes_all = self._is_new or str(now.plan) != furthest.plan
        is_behind = self._unpack(received, former.position)
        now.build_engine()
        self._catch_up(received, former, furthest.agreed, takes_all=takes_all, takes_options=is_behind)
        if self._is_new and received.owed:  # as does the source, whose step it has behind it
            agreed = furthest.agreed
            self._repeats = Position(agreed, agreed + 1, is_stepped=True, options=received.owed)
        if self._is_new and not furthest.is_new:
            if self._carried is not None:
                self._carried.load_state_dict(received.carried, received.step)
            # Counted on only after its first step: others may be about to do something together at this one.
            self._arrival = Arrival(began_s, received.step_s, now.step)
        self._note_where_all_begin(cards, former, as_source=self._is_new or is_behind)

    def _note_where_all_begin(self, cards: Cards, former: Former, *, as_source: bool) -> None:
        """Notes after which step all are together: some are still within one that others have behind them.

        Args:
            cards: of all.
            former: of this worker.
            as_source: whether its steps are counted as those of the source are.
        """
        now, rank = self._now, self._now.context.transport.rank
        passed = now.step + former.position.is_in_step
        now.began_at = passed + cards.still_to_make(cards.source if as_source else rank, as_source=as_source)

    def _exchange(self, transport: Transport, cards: Cards, former: Former) -> Luggage | None:
        """Gives to those who lack something, or takes; returns what was taken. Nothing of it is taken up yet."""
        lacking, is_source = cards.lacking(), transport.rank == cards.source
        if not lacking:
            return None
        luggage = vars(self._luggage(former)) if is_source else None
        received = hand_over(transport, cards.source, lacking, luggage)
        return None if received is None else Luggage.of(received, self._now.context.model)

    def _luggage(self, former: Former) -> Luggage:
        """Returns all that others may lack, of this worker."""
        now, state, position = self._now, former.state, former.position
        context = now.context
        agreed = former.engine.outcome(state) if state else None
        outcome = {n: (p if agreed is None else agreed[n]).detach() for n, p in now.parameters().items()}
        step = now.step + position.ahead(self._served, is_lost=self._is_round_lost)
        return Luggage(
            model=packed_model(context.model, outcome, context.left),
            outcome=outcome,
            optimizers=[member.state_dict() for member in context.optimizers.members],
            engine=former.engine.handed(state) if state else {},
            step=step,
            lead=now.lead,
            behind=now.behind,
            step_s=now.record.usual_s,
            plans=[str(now.asked), str(now.plan)],
            observed=context.observed.state(),
            told=None if self.told is None else self.told.to_list(),
            carried={} if self._carried is None else self._carried.state_dict(step),
            owed=position.owed(is_lost=self._is_round_lost),
        )

    def _move(self, transport: Transport, cards: Cards) -> None:
        """Begins to count members anew, and to speak to them over the new world's transport."""
        now, membership = self._now, self._now.context.membership
        meetings = cards.by_rank[cards.source].meetings
        membership.begin_anew(transport.size, meetings, any(card.uneven for card in cards.by_rank))
        membership.lost_rounds += self._is_round_lost
        where = next(iter(now.parameters().values())).device
        reached = reaching(transport, where, now.context.leaves_by)
        now.move(Counting(reached, tally=now.context.transport.tally))

    def _unpack(self, received: Luggage, position: Position) -> bool:
        """Takes what does not depend on the engine; returns whether others made steps that this worker did not."""
        now = self._now
        self.told = None if received.told is None else Told.of_list(received.told)
        now.ask(Phases.parse(received.plans[0]))
        now.plan = Plan.parse(received.plans[1])
        now.context.observed.take(received.observed)
        step = received.step - position.is_in_step  # the user's step of the present pass is still to come
        if self._is_new:
            received.fill_model(now.context.model)
            now.step, now.lead, now.behind = step, received.lead, received.behind
            return True
        missed = step + received.behind - now.most_steps if position.is_dropped and self.trains else 0
        self._count(max(0, missed))
        return missed > 0

    def _catch_up(
        self, received: Luggage, former: Former, agreed: int, *, takes_all: bool, takes_options: bool
    ) -> None:
        """Takes what depends on the engine, which has been built, after so many rounds agreed on."""
        now, engine = self._now, self._now.engine
        own = engine.salvage() if takes_all or not former.state else former.state
        state, names = engine.catch_up(own, received.engine or engine.salvage(), is_new=takes_all)
        parameters = now.parameters()
        with torch.no_grad():
            for name in names:
                parameters[name].copy_(received.outcome[name])
        if engine.keeps_replicas_equal or takes_all:
            received.fill_optimizers(now.context.optimizers.members, with_options=takes_options)
        engine.take_up(state, agreed)
