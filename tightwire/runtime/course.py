"""The course of a run: how all members change together what is in force, in meetings between steps."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

from torch.nn import Parameter

from tightwire.architecture import ParameterServer
from tightwire.errors import AttachError
from tightwire.plan import Phases, Plan
from tightwire.runtime.agreement import copy_from_first
from tightwire.runtime.carried import Carried, scales_of
from tightwire.runtime.context import RunContext
from tightwire.runtime.groups import trained
from tightwire.runtime.in_force import InForce
from tightwire.runtime.loads import LoadWatch
from tightwire.runtime.meeting import News, Told, meet
from tightwire.runtime.membership import MembersChangedError
from tightwire.runtime.phases import spelled_out
from tightwire.runtime.reading import readable
from tightwire.runtime.renewal import Renewal
from tightwire.runtime.snapshot import Snapshot
from tightwire.transport import Counting

log = logging.getLogger("tightwire")


class Course:
    """Every change of what is in force, agreed upon by all members.

        training --finish()--> meeting until all are finished --> training (evaluate, save, go on) or closed
        training --end of a phase, adopt(), a schedule that has measured--> meeting --> training under the next engine
        training --leave()--> meeting after the next round --> closed here, training without this rank elsewhere
        training, meeting --a member is lost--> renewal (elastic members alone) --> where it was, among the others
        training --somebody waits outside--> meeting --> renewal --> training among more

    A meeting is an engine's flush, after which nothing is under way, and a message in which every member says why it
    came (`meeting.News`). A member that is finished follows what those that train on are about to do.

    Contract: all methods that say so are for every member at the same step; those block.

    Attributes:
        now: what is in force between changes.
        has_left: whether this rank left for good.
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
        """Begins with no engine; see `InForce.begin`, and `enter` where members are elastic.

        Args:
            phases: plans and their last steps.
            context: over the members.
            parameters: returns those that are kept in step, by name.
            on_members: is told of the context when members have changed.
            facts: what must be equal on all members, also newcomers.
            carried: what newcomers are given.
        """
        self.now = InForce(phases, context, parameters, on_members)
        self.has_left = False
        self._carried = carried
        self._renewal = Renewal(self.now, facts or {}, carried)
        self._only_in: int | None = None  # the members, by number, that `undisturbed` is for
        self._loads: LoadWatch | None = None  # until training begins
        self._membership = context.membership
        self._membership.renew = self._renewal.renew

    def come_together(self, at: int) -> bool:
        """Returns whether all come to what they do together after so many steps; see `Renewal.come_together`."""
        return self._renewal.come_together(at)

    def enter(self) -> None:
        """Joins the members of an elastic job, and begins the first engine. Every member.

        Raises:
            PeerError: nobody lets this worker in.
            MismatchError: it is about to train something else.
        """
        self._renewal.renew()
        self.end_phase()  # those who let this worker in may be at the end of one

    def watch_loads(self) -> None:
        """Begins to notice that what is shared is loaded, which the first engine has copied perhaps."""
        context = self.now.context
        of_groups = (trained(sharing, context.model).values() for sharing in context.groups)
        self._loads = LoadWatch(context.model, chain(self.now.parameters().values(), *of_groups))

    def begin_training(self, *, is_told: bool = False) -> None:
        """Builds the first engine anew if the model was loaded since, for it may hold what that was before. Once.

        Every member, before it meets others for the first time; blocks if the model was loaded, as on all.

        Args:
            is_told: whether the engine was given what belongs to it, as by `Run.load_state_dict`.

        Raises:
            AttachError: the model was loaded, and not all who hold it are here: members are elastic, or servers apart.
        """
        loads, now = self._loads, self.now
        self.close()
        if loads is None or not loads.is_loaded or is_told or now.engine.keeps_replicas_equal:
            return
        if now.engine.is_server:  # workers know
            return
        architecture = now.plan.architecture
        if self._membership.is_elastic or (
            isinstance(architecture, ParameterServer) and architecture.servers
        ):
            raise AttachError(
                f"the model was loaded after it was attached, and others may hold what it was, under {now.plan}: "
                "load first and attach then, or call run.load_state_dict with what this plan remembered."
            )
        log.info("the model was loaded after it was attached: %s begins with what it is now.", now.plan)
        copy_from_first(now.context.transport.inner, now.parameters().values())
        self.go_to(now.step, anew=True)

    def close(self) -> None:
        """Takes hooks out. Local."""
        if self._loads is not None:
            self._loads.close()
            self._loads = None

    def adopt(self, plan: Plan) -> None:
        """Goes on under another plan. Every member that trains."""
        asked = Phases((plan,))
        self.turn(spelled_out(asked).at(self.now.most_steps + 1), keep=True, asked=asked)

    def go_back(self, snapshot: Snapshot, plan: Plan, *, remembering: bool) -> None:
        """Restores a snapshot and goes on under another plan, with an engine that remembers nothing else.

        Steps are counted on: they are the user's. Every member that trains, at the same step.

        Args:
            snapshot: of this member.
            plan: the same on all of them.
            remembering: whether the engine takes up what the snapshot's remembered.
        """
        asked = Phases((plan,))
        plan = spelled_out(asked).at(self.now.most_steps + 1)
        are_equal = snapshot.is_equal
        if not self.now.is_alone:
            told = self.meet(News(why="turn", plan=str(plan), asked=str(asked), goes_back=True))
            are_equal = are_equal and not told.of("finish")
        self.now.ask(asked)
        self.now.begin(plan, were_equal=are_equal, back_to=snapshot)
        if remembering and snapshot.engine is not None:
            self.now.engine.load_state_dict(snapshot.engine)

    def end_step(self) -> None:
        """Meets, where the step that has just ended calls for it. Every member that trains."""
        membership, door = self._membership, self._membership.door
        if self._renewal.count_on():
            membership.guard(lambda: self.now.engine.go_on(self.now.engine.position(), is_lost=False))
        leaves = membership.leaving or (door is not None and door.notice.is_set())
        if door is not None and self.now.engine.postpones and door.is_left_behind():
            self._renewal.renew()  # what it did alone nobody will hear of
            return
        if door is not None and not self.now.engine.calls_rolls and membership.wants_meeting:
            self.has_left = leaves
            if not leaves:
                self._renewal.renew()
        elif membership.calls_meeting:
            self._meet_once(News(why="leave" if leaves else "join" if membership.wants_meeting else "stay"))
        if self.has_left or self.now.step <= self.now.began_at:  # some had this step behind them
            return
        wants: list[bool] = []
        membership.guard(lambda: wants.append(self.now.engine.needs_rebuild()))
        if any(wants):
            told = self._meet_once(News(why="rebuild", measured=self.now.context.observed.proposal))
            if told is not None:
                self._rebuild(told)

    def end_phase(self) -> None:
        """Goes on with the next phase, if the last step was the last of its phase. Every member that trains."""
        plan = self.now.next_plan
        if (
            self.now.most_steps in self.now.phases.ends and plan != self.now.plan
        ):  # else others took this worker along
            self.turn(plan, keep=False)  # what stages remember of one phase means nothing in the next

    def go_to(self, step: int, *, anew: bool = False) -> None:
        """Counts on from another step, under its phase, with the model and optimizers that were loaded. Every member.

        Args:
            step: the last that counts as made.
            anew: whether the engine is built anew where the plan stays.
        """
        self.now.step = self.now.began_at = step
        if (plan := self.now.next_plan) != self.now.plan or anew:
            # Else the meeting would make parameters those that all had in common before.
            loaded = Snapshot(self.now.context.model, self.now.context.optimizers)
            self.meet(News(why="turn", plan=str(plan)))
            self.now.begin(plan, were_equal=False, back_to=loaded)

    def finish(self) -> None:
        """Meets until all are finished, and follows those that train on.

        Every member, when its data is over.
        """
        self._renewal.trains = False
        while True:
            number = self._membership.number
            told = self.meet(News(why="finish"))
            if told.are_finished:
                self.now.lead = self.now.step - min(news.step for news in told.news)
                self.now.behind = max(told.most_steps) - self.now.step
                break
            if turn := told.first("turn"):
                if turn.asked:
                    self.now.ask(Phases.parse(turn.asked))
                # Else the others, who had met already, took this worker along.
                if number == self._membership.number or str(self.now.plan) != turn.plan:
                    self.now.begin(Plan.parse(turn.plan), were_equal=False if turn.goes_back else None)
            elif told.of("rebuild"):
                self._rebuild(told)
        self._renewal.trains = True

    def leave(self) -> None:
        """Leaves with the next round.

        Raises:
            AttachError: an engine whose ranks cannot do without each other.
        """
        if not self.now.is_alone:
            self.now.engine.require_leavable()
            self._membership.leaving = True
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
        number, are_here = self._membership.number, self.now.is_alone
        while not are_here:
            number = self._membership.number
            told = self.meet(News(why="turn", plan=str(plan), asked="" if asked is None else str(asked)))
            # Who came to let somebody in or out is still on its way to this turn, unless it took this worker along.
            is_taken = number != self._membership.number and self.now.plan == plan
            are_here = is_taken or not (told.of("join") or told.of("stay"))
        if asked is not None:
            self.now.ask(asked)
        # Else the others took this worker along.
        if number == self._membership.number or self.now.plan != plan:
            self.now.go_on(plan, keep=keep)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside, whoever meets does so with the present members or not at all: nothing is repeated among others.

        Contract: every member that trains, at the same step; whatever all do inside ends on all alike.

        Raises:
            MembersChangedError: they changed meanwhile; the plan in force is the same on all of them.
        """
        self._only_in = self._membership.number
        try:
            yield
            self.require_undisturbed()
        finally:
            self._only_in = None

    def guard(self, act: Callable[[], None]) -> None:
        """Does something that every member does, over their transport; see `undisturbed` and `Membership.guard`."""
        self._membership.guard(act)
        self.require_undisturbed()

    def require_undisturbed(self) -> None:
        """Raises `MembersChangedError` inside `undisturbed`, if they did."""
        if self._only_in not in (None, self._membership.number):
            raise MembersChangedError

    def meet(self, news: News) -> Told:
        """Flushes, as all members do now, and hears why; whoever leaves is gone afterwards. Every member."""
        self.require_undisturbed()
        if self.now.is_alone:
            return self._come(news)
        membership = self._membership
        while True:
            number, came = membership.number, list[Told]()

            def come(came: list[Told] = came) -> None:
                came.append(self._come(news))

            membership.guard(come)
            if membership.number == number:  # nobody was lost
                self._renewal.told = told = came[0]
                membership.met()
                break
            self.require_undisturbed()
            if self._renewal.has_missed and self._renewal.told is not None:  # the others have met already
                told = self._renewal.told
                break
        self.now.record.waited_s_by_worker = tuple(other.waited_s for other in told.news)
        if membership.number == number:
            self._follow(told)
        return told

    def _meet_once(self, news: News) -> Told | None:
        """Meets; None where members changed meanwhile: who came knows nothing of it, and it is called for again."""
        try:
            with self.undisturbed():
                return self.meet(news)
        except MembersChangedError:
            return None

    def _come(self, news: News) -> Told:
        """Flushes, and hears why all have come."""
        if self._membership.is_elastic:  # a round may have been repeated since the last step
            self._membership.settle()
        self.now.engine.flush()
        now = self.now
        news = replace(news, step=now.step, behind=now.behind, waited_s=now.record.waited_s)
        if now.is_alone or not now.engine.flush_is_collective:
            return Told((replace(news, why="finish"),))
        told = meet(self.now.context.transport.inner, news)
        if self._membership.uneven and self.now.engine.keeps_replicas_equal:
            self.now.make_states_equal()  # parameters are equal already
        if told.are_finished:
            self._conclude(told)
        return told

    def _conclude(self, told: Told) -> None:
        """Does what is left to do once all are finished."""
        longest = told.most_steps.index(max(told.most_steps))
        self._membership.conclude(longest)
        if self._carried is not None and min(told.most_steps) < max(told.most_steps):
            # Who was finished updated no GradScaler meanwhile; means are of gradients in one scale.
            told_scales = self.now.context.transport.inner.exchange(
                json.dumps(self._carried.scales()).encode()
            )
            self._carried.take_scales(readable(told_scales, scales_of)[longest])
        if self._membership.is_elastic:  # who has met may go for good: not before all have everything
            self.now.context.transport.inner.exchange(b"")

    def _follow(self, told: Told) -> None:
        """Goes on among those who stay and come."""
        leaving, rank = told.of("leave"), self.now.context.transport.rank
        if self._membership.is_elastic and told.of("join"):
            if rank in leaving:
                self.has_left = True
            else:
                self._renewal.renew()
        elif leaving:
            self._membership.guard(lambda: self._go_on_without(leaving))

    def _rebuild(self, told: Told) -> None:
        """Builds the engine anew, with what was measured."""
        is_news = self.now.context.observed.take(told.measured)
        if is_news or not self._membership.is_elastic:
            self.now.go_on(self.now.plan, keep=True)

    def _go_on_without(self, leaving: Sequence[int]) -> None:
        transport = self.now.context.transport
        staying = [rank for rank in range(transport.size) if rank not in leaving]
        group = transport.group(staying) if staying else None
        if group is None:
            self.has_left = True
            return
        assert isinstance(group, Counting)
        self._membership.without(leaving)
        self.now.began_at = self.now.step
        self.now.move(group)
        self.now.go_on(self.now.plan, keep=True)
        log.warning(
            "rank %s left after step %d; the others go on with the mean of %d, renumbered in order.",
            " and ".join(map(str, leaving)),
            self.now.step,
            group.size,
        )
