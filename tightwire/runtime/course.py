"""The course of a run: its plans, one after another, the engine of the present one, and how all change it together."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.errors import AttachError, PeerError
from tightwire.plan import Phases, Plan
from tightwire.runtime.agreement import assign
from tightwire.runtime.carried import Carried
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines import Engine, LoneEngine, build_engine
from tightwire.runtime.engines.engine import Position
from tightwire.runtime.meeting import News, Told, meet
from tightwire.runtime.membership import MEMBERS_CHANGED, MembersChangedError
from tightwire.runtime.phases import spelled_out
from tightwire.runtime.record import Record
from tightwire.runtime.renewal import (
    MOST,
    Card,
    Cards,
    digest_of_facts,
    hand_over,
    refuse_strangers,
    require_whole,
    show_cards,
)
from tightwire.runtime.replicas import make_states_equal
from tightwire.runtime.snapshot import Snapshot
from tightwire.runtime.variance import configure_variance
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


class Course:
    """Which engine is in force, and every change of it.

        training --finish()--> meeting until all are finished --> training (evaluate, save, go on) or closed
        training --end of a phase, adopt(), a schedule that has measured--> meeting --> training under the next engine
        training --leave()--> meeting after the next round --> closed here, training without this rank elsewhere
        training, meeting --a member is lost--> renewal (elastic members alone) --> where it was, among the others
        training --somebody waits outside--> meeting --> renewal --> training among more

    A meeting is an engine's flush, after which nothing is under way, and a message in which every member says why it
    came (`meeting.News`). A member that is finished follows what those that train on are about to do.

    Contract: all methods that say so are for every member at the same step; those block.

    Attributes:
        asked: what the user wants now.
        plan: in force at present.
        engine: that carries it out.
        context: over the present members.
        record: of what happened.
        step: optimizer steps made so far.
        has_left: whether this rank left for good.
        began_at: the step after which the present members were together first.
    """

    def __init__(
        self,
        phases: Phases,
        context: RunContext,
        parameters: Callable[[], Mapping[str, Parameter]],
        on_members: Callable[[RunContext], None],
        facts: Mapping[str, object] | None = None,
        carried: Carried | None = None,
    ) -> None:
        """Begins with no engine; see `build`, and `renew` where members are elastic.

        Args:
            phases: plans and their last steps.
            context: over the members.
            parameters: returns those that are kept in step, by name.
            on_members: is told of the context when members have changed.
            facts: what must be equal on all members, also newcomers.
            carried: what newcomers are given.
        """
        self.asked, self._phases = phases, spelled_out(phases)
        self.plan = self._phases.at(1)
        self.engine: Engine = LoneEngine()
        self.context, self.record = context, Record()
        self.step = self.began_at = 0
        self.has_left = False
        self._only_in: int | None = None  # the members, by number, that `undisturbed` is for
        self._parameters, self._on_members = parameters, on_members
        self._facts, self._carried = dict(facts or {}), carried
        self._is_new = self._trains = True
        self._world = 0  # in which this worker trained last
        self._has_missed = False  # a meeting that others have had
        self._owes = False  # what optimizers remember is still to be made equal for the plan that has begun
        self._is_lost = False  # the round that was under way at the last renewal
        self._told: Told | None = None  # at the last meeting
        self._arrival: Arrival | None = None  # of this worker among others, until its first round
        context.membership.renew = self.renew

    @property
    def is_alone(self) -> bool:
        """Whether this is a world of one that nobody can join."""
        return self.context.transport.size == 1 and not self.context.membership.is_elastic

    def adopt(self, plan: Plan) -> None:
        """Goes on under another plan. Every member that trains."""
        asked = Phases((plan,))
        self.turn(spelled_out(asked).at(self.step + 1), keep=True, asked=asked)

    def go_back(self, snapshot: Snapshot, plan: Plan, *, remembering: bool) -> None:
        """Restores a snapshot and goes on under another plan, with an engine that remembers nothing else.

        Steps are counted on: they are the user's. Every member that trains, at the same step.

        Args:
            snapshot: of this member.
            plan: the same on all of them.
            remembering: whether the engine takes up what the snapshot's remembered.
        """
        asked = Phases((plan,))
        plan = spelled_out(asked).at(self.step + 1)
        are_equal = snapshot.is_equal
        if not self.is_alone:
            told = self.meet(News(why="turn", plan=str(plan), goes_back=True))
            are_equal = are_equal and not told.of("finish")
        self.asked, self._phases = asked, spelled_out(asked)
        snapshot.restore()
        self.build(plan, were_equal=are_equal)
        if remembering and snapshot.engine is not None:
            self.engine.load_state_dict(snapshot.engine)

    def end_step(self) -> None:
        """Meets, where the step that has just ended calls for it. Every member that trains."""
        membership, door = self.context.membership, self.context.membership.door
        if self.engine.rounds:
            self._arrival = None
        if self._count_on():
            membership.guard(lambda: self.engine.go_on(self.engine.position(), is_lost=False))
        leaves = membership.leaving or (door is not None and door.notice.is_set())
        if door is not None and self.engine.postpones and door.is_left_behind():
            self.renew()  # what it did alone nobody will hear of
            return
        if door is not None and not self.engine.calls_rolls and membership.wants_meeting:
            self.has_left = leaves
            if not leaves:
                self.renew()
        elif membership.calls_meeting:
            self.meet(News(why="leave" if leaves else "join" if membership.wants_meeting else "stay"))
        if self.has_left:
            return
        wants: list[bool] = []
        membership.guard(lambda: wants.append(self.engine.needs_rebuild()))
        if any(wants):
            self._rebuild(self.meet(News(why="rebuild", measured=self.context.observed.proposal)))

    def end_phase(self) -> None:
        """Goes on with the next phase, if the last step was the last of its phase. Every member that trains."""
        plan = self._phases.at(self.step + 1)
        if self.step in self._phases.ends and plan != self.plan:  # else others took this worker along
            self.turn(plan, keep=False)  # what stages remember of one phase means nothing in the next

    def go_to(self, step: int) -> None:
        """Counts on from another step, under its phase. Every member."""
        self.step = step
        if (plan := self._phases.at(step + 1)) is not self.plan:
            self.turn(plan, keep=False)

    def finish(self) -> int:
        """Meets until all are finished, and follows those that train on; returns the rank that trained longest.

        Every member, when its data is over.
        """
        self._trains = False
        while True:
            number = self.context.membership.number
            told = self.meet(News(why="finish"))
            if told.are_finished:
                break
            if turn := told.first("turn"):
                # Else the others, who had met already, took this worker along.
                if number == self.context.membership.number or str(self.plan) != turn.plan:
                    self.build(Plan.parse(turn.plan), were_equal=False if turn.goes_back else None)
            elif told.of("rebuild"):
                self._rebuild(told)
        self._trains = True
        return max(range(len(told.news)), key=lambda rank: told.news[rank].step)

    def leave(self) -> None:
        """Leaves with the next round.

        Raises:
            AttachError: an engine whose ranks cannot do without each other.
        """
        if not self.is_alone:
            self.engine.require_leavable()
            self.context.membership.leaving = True
            while not self.has_left:
                self.meet(News(why="leave"))
        self.has_left = True

    def turn(self, plan: Plan, *, keep: bool, asked: Phases | None = None) -> None:
        """Goes on under another plan. Every member that trains.

        Args:
            plan: the same on all of them.
            keep: whether to keep what stages remember, where it means the same.
            asked: what is wanted from then on; None: as before.
        """
        number, are_here = self.context.membership.number, self.is_alone
        while not are_here:
            number = self.context.membership.number
            told = self.meet(News(why="turn", plan=str(plan)))
            # Who came to let somebody in or out is still on its way to this turn, unless it took this worker along.
            is_taken = number != self.context.membership.number and self.plan == plan
            are_here = is_taken or not (told.of("join") or told.of("stay"))
        if asked is not None:
            self.asked, self._phases = asked, spelled_out(asked)
        if (
            number == self.context.membership.number or self.plan != plan
        ):  # else the others took this worker along
            self._go_on(plan, keep=keep)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside, whoever meets does so with the present members or not at all: nothing is repeated among others.

        Contract: every member that trains, at the same step; whatever all do inside ends on all alike.

        Raises:
            MembersChangedError: they changed meanwhile; the plan in force is the same on all of them.
        """
        self._only_in = self.context.membership.number
        try:
            yield
            self.require_undisturbed()
        finally:
            self._only_in = None

    def guard(self, act: Callable[[], None]) -> None:
        """Does something that every member does, over their transport; see `undisturbed` and `Membership.guard`."""
        self.context.membership.guard(act)
        self.require_undisturbed()

    def require_undisturbed(self) -> None:
        """Raises `MembersChangedError` inside `undisturbed`, if they did."""
        if self._only_in not in (None, self.context.membership.number):
            raise MembersChangedError

    def meet(self, news: News) -> Told:
        """Flushes, as all members do now, and hears why; whoever leaves is gone afterwards. Every member."""
        self.require_undisturbed()
        if self.is_alone:
            return self._come(news)
        membership = self.context.membership
        while True:
            number, came = membership.number, list[Told]()

            def come(came: list[Told] = came) -> None:
                came.append(self._come(news))

            membership.guard(come)
            if membership.number == number:  # nobody was lost
                self._told = told = came[0]
                membership.met()
                break
            self.require_undisturbed()
            if self._has_missed and self._told is not None:  # the others have met already
                told = self._told
                break
        self.record.waited_s_by_worker = tuple(other.waited_s for other in told.news)
        if membership.number == number:
            self._follow(told)
        return told

    def _come(self, news: News) -> Told:
        """Flushes, and hears why all have come."""
        self.engine.flush()
        news = replace(news, step=self.step, waited_s=self.record.waited_s)
        if self.is_alone or not self.engine.flush_is_collective:
            return Told((replace(news, why="finish"),))
        told = meet(self.context.transport.inner, news)
        if self.context.membership.uneven and self.engine.keeps_replicas_equal:
            self._make_states_equal()  # parameters are equal already
        return told

    def _follow(self, told: Told) -> None:
        """Goes on among those who stay and come."""
        leaving, rank = told.of("leave"), self.context.transport.rank
        if self.context.membership.is_elastic and told.of("join"):
            if rank in leaving:
                self.has_left = True
            else:
                self.renew()
        elif leaving:
            self.context.membership.guard(lambda: self._go_on_without(leaving))

    def take_costs(self, costs: Mapping[str, tuple[float, float]]) -> None:
        """Takes what programs were measured to take among the present members. Every member, alike."""
        self.context = replace(self.context, costs=costs)

    def build(self, plan: Plan, *, were_equal: bool | None = None) -> dict[str, Any]:
        """Replaces the engine, in which nothing is under way; returns what it remembered. Every member.

        Args:
            plan: of the next one.
            were_equal: whether what optimizers remember is equal on all members; None: where the engine kept it so.
        """
        self.plan = plan
        for member in self.context.optimizers.members:
            configure_variance(member, plan, lambda: self.engine.last_round)
        state = self.engine.state_after_meeting()
        is_equal = self.engine.keeps_replicas_equal if were_equal is None else were_equal
        self.engine.close()
        self.record.begin_plan(self.engine)
        self.engine = LoneEngine()
        if not self.is_alone:
            self._owes = not is_equal
            self.context.membership.guard(lambda: self._begin_plan(plan))
        return state

    def _begin_plan(self, plan: Plan) -> None:
        self.engine = self._new_engine(plan)
        self._settle_states()

    def _settle_states(self) -> None:
        """Makes what optimizers remember equal, where it is owed to the plan in force. Every member."""
        if self._owes and self.engine.keeps_replicas_equal:
            self._make_states_equal()
        self._owes = False

    def renew(self) -> None:
        """Goes on in another world, with those who live and those who came; see `renewal`.

        What was under way is repeated among them or dropped on all alike. Every member that lives.

        Raises:
            PeerError: nobody lets this worker in.
            MismatchError: this worker is new, and is about to train something else.
        """
        door = self.context.membership.door
        assert door is not None
        self._has_missed = False
        while True:
            before, state = self.engine, dict[str, Any]()
            position = before.position()
            if not self._is_new:
                self.context.transport.inner.close()  # so that nothing waits for ever, here or elsewhere
                before.close()
                state = before.salvage()
                self.record.begin_plan(before)
            while not self._enter(door, before, position, state):
                pass
            self.began_at = self.step
            try:
                self._is_new = False
                self._settle_states()
                self.engine.go_on(position, is_lost=self._is_lost)
                return
            except PeerError as error:
                log.info("another member was lost: %s", error)

    def _enter(self, door: Door, before: Engine, position: Position, state: Mapping[str, Any]) -> bool:
        """Takes this worker into the next world, with what an engine left; returns whether it came about."""
        # Who has trained before is not a worker of a job that is still to begin, whatever engine it has just now.
        admission = door.enter(max(position.agreed, int(self._world > 0)))
        transport, membership = admission.transport, self.context.membership
        try:
            card = Card(
                agreed=position.agreed,
                begun=position.begun,
                landed=position.landed,
                step=self.step,
                served=position.served,
                is_new=self._is_new,
                world=self._world,
                trains=self._trains,
                follows=before.finished_follow,
                meetings=membership.meetings,
                plan=str(self.plan),
                owes=self._owes,
                uneven=membership.uneven,
                facts=digest_of_facts(self._facts),
            )
            cards = show_cards(transport, card)
            self._is_new = cards.by_rank[transport.rank].is_new
            self._has_missed |= card.meetings < cards.by_rank[cards.source].meetings
            if refuse_strangers(transport, cards, self._facts):
                return False
            self._settle(transport, cards, before, position, state)
            # Only now: who lost somebody before it had all that it lacked lacks it still.
            self._world, self._owes = admission.number, cards.by_rank[cards.source].owes
        except PeerError as error:
            log.info("another member was lost: %s", error)
            return False
        door.watches = transport.rank == 0
        if not self._is_new:
            log.warning(
                MEMBERS_CHANGED,
                self.step,
                transport.size,
                transport.rank,
                "; the round under way is dropped on all" if self._is_lost else "",
            )
        return True

    def _settle(
        self,
        transport: Transport,
        cards: Cards,
        before: Engine,
        position: Position,
        state: Mapping[str, Any],
    ) -> None:
        """Gives and takes what members lack, and builds the engine."""
        source, furthest, lacking = cards.source, cards.by_rank[cards.source], cards.lacking()
        behind_it = self.step + position.ahead(max(card.served for card in cards.by_rank))
        luggage = self._luggage(before, state, behind_it) if transport.rank == source and lacking else None
        began_s = time.perf_counter()
        received = hand_over(transport, source, lacking, luggage) if lacking else None
        if received is not None:
            model = self.context.model
            require_whole(received, dict([*model.named_parameters(), *model.named_buffers()]))
        self._is_lost = cards.is_round_lost
        membership = self.context.membership
        membership.begin_anew(transport.size, furthest.meetings, any(card.uneven for card in cards.by_rank))
        membership.lost_rounds += self._is_lost
        where = next(iter(self._parameters().values())).device
        reached = reaching(transport, where, self.context.leaves_by)
        self.context = self.context.over(Counting(reached, tally=self.context.transport.tally))
        self._on_members(self.context)
        takes_all = self._is_new or str(self.plan) != furthest.plan
        if received is not None:
            self._unpack(received)
            if self._is_new and position.begun > position.agreed and not position.is_stepped:
                self.step -= 1  # the user's step of the present pass is still to come
        self.engine = LoneEngine()
        self.engine = engine = self._new_engine(self.plan)
        self._arrival = None
        if received is None:
            if not self._is_new and state:  # none, where the loss was in the midst of a change of plan
                engine.take_up(state, furthest.agreed)
            return
        own = engine.salvage() if takes_all or not state else state
        theirs = received["engine"] or engine.salvage()
        caught_up, names = engine.catch_up(own, theirs, is_new=takes_all)
        parameters, outcome = self._parameters(), received["outcome"]
        with torch.no_grad():
            for name in names:
                parameters[name].copy_(outcome[name])
        if engine.keeps_replicas_equal or takes_all:
            self._load_optimizers(received["optimizers"])
        if self._is_new and self._carried is not None and not furthest.is_new:
            self._carried.load_state_dict(received["carried"])
        engine.take_up(caught_up, furthest.agreed)
        if self._is_new and not furthest.is_new:
            self._arrival = Arrival(began_s, received["step_s"], self.step)
            self._count_on()

    def _count_on(self) -> bool:
        """Counts steps that others made while this worker, which is new, was slower; returns whether there are any."""
        arrival = self._arrival
        if arrival is None or self._phases.at(self.step + 1) != self.plan:  # first the next phase begins
            return False
        most = min((end for end in self._phases.ends if end > self.step), default=MOST) - 1 - self.step
        skipped = self.engine.skip_ahead(min(most, arrival.missed(time.perf_counter(), self.step)))
        self.step += skipped
        return skipped > 0

    def _luggage(self, before: Engine, state: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Returns all that others may lack of what an engine left; a newcomer has made so many steps."""
        model, left = self.context.model, self.context.left
        shared = [*model.named_parameters(), *model.named_buffers()]
        agreed = before.outcome(state) if state else None
        outcome = {n: (p if agreed is None else agreed[n]).detach() for n, p in self._parameters().items()}
        return {
            # What is equal, as after a meeting, is the same tensor, and is sent once.
            "model": {
                name: _same(outcome.get(name), tensor.detach()) for name, tensor in shared if name not in left
            },
            "outcome": outcome,
            "optimizers": [member.state_dict() for member in self.context.optimizers.members],
            "engine": before.handed(state) if state else {},
            "step": step,
            "step_s": self.record.usual_s,
            "plans": [str(self.asked), str(self.plan)],
            "observed": self.context.observed.state(),
            "told": None if self._told is None else self._told.to_list(),
            "carried": {} if self._carried is None else self._carried.state_dict(step),
        }

    @torch.no_grad()
    def _unpack(self, received: Mapping[str, Any]) -> None:
        """Takes what does not depend on the engine."""
        self._told = None if received["told"] is None else Told.of_list(received["told"])
        self.asked = Phases.parse(received["plans"][0])
        self._phases, self.plan = spelled_out(self.asked), Plan.parse(received["plans"][1])
        self.context.observed.take(received["observed"])
        if not self._is_new:
            return
        model = self.context.model
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in received["model"]:
                assign(tensor, received["model"][name].to(tensor.device))
        self.step = received["step"]

    def _load_optimizers(self, states: Sequence[dict[str, Any]]) -> None:
        for member, kept in zip(self.context.optimizers.members, states, strict=True):
            orders = [list(group) for group in member.param_groups]
            member.load_state_dict(kept)
            for group, order in zip(member.param_groups, orders, strict=True):
                options = {key: group[key] for key in [*order, *group] if key in group}
                group.clear()
                group.update(options)  # options are compared in their order

    def _new_engine(self, plan: Plan) -> Engine:
        """Builds what carries out a plan. Every member.

        Raises:
            AttachError: members are elastic, and the plan cannot do without one that dies.
        """
        if self.context.membership.is_elastic:
            plan = replace(plan, architecture=plan.architecture.fitted(self.context.transport.size))
        engine = build_engine(self._parameters(), plan, self.context)
        if self.context.membership.is_elastic and not engine.survives:
            engine.close()
            raise AttachError(
                f"tightwire.init(elastic=True) was asked for, and {plan} cannot yet do without a worker that dies; "
                "bsp, delayed and acco over an all-reduce, local methods (local:8, diloco:30), servers and gossip can."
            )
        return engine

    def _make_states_equal(self) -> None:
        transport = self.context.transport.inner
        make_states_equal(transport, self.context.optimizers, self._parameters(), self.step)

    def _go_on(self, plan: Plan, *, keep: bool) -> None:
        before, state = self.plan, self.build(plan)
        if state and keep:
            self._carry_over(state, before)

    def _rebuild(self, told: Told) -> None:
        """Builds the engine anew, with what was measured."""
        is_news = self.context.observed.take(told.measured)
        if is_news or not self.context.membership.is_elastic:
            self._go_on(self.plan, keep=True)

    def _carry_over(self, state: Mapping[str, Any], before: Plan) -> None:
        """Takes up what was remembered under the plan before, if it means the same under this one."""
        try:
            if before.sync == self.plan.sync:
                self.engine.load_state_dict(state)
                return
        except AttachError:  # it remembers something else
            pass
        if state["memory"]:
            warnings.warn(
                f"leftovers and momenta of {before} are dropped: they mean nothing under {self.plan}.",
                stacklevel=4,
            )

    def _go_on_without(self, leaving: Sequence[int]) -> None:
        transport = self.context.transport
        staying = [rank for rank in range(transport.size) if rank not in leaving]
        group = transport.group(staying) if staying else None
        if group is None:
            self.has_left = True
            return
        assert isinstance(group, Counting)
        self.context.membership.without(leaving)
        self.began_at = self.step
        self.context = self.context.over(group)
        self._on_members(self.context)
        if state := self.build(self.plan):
            self._carry_over(state, self.plan)
        log.warning(
            "rank %s left after step %d; the others go on with the mean of %d, renumbered in order.",
            " and ".join(map(str, leaving)),
            self.step,
            group.size,
        )


def _same(known: Tensor | None, tensor: Tensor) -> Tensor:
    """Returns the known tensor if it is as the other is, to the bit; else the other."""
    is_alike = known is not None and known.dtype == tensor.dtype and known.device == tensor.device
    return known if known is not None and is_alike and torch.equal(known, tensor) else tensor
