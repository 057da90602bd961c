"""The course of a run: its plans, one after another, the engine of the present one, and how all change it together."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.nn import Parameter

from tightwire.errors import AttachError
from tightwire.plan import Phases, Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines import Engine, LoneEngine, build_engine
from tightwire.runtime.meeting import News, Told, meet
from tightwire.runtime.phases import spelled_out
from tightwire.runtime.record import Record
from tightwire.runtime.replicas import make_states_equal
from tightwire.runtime.snapshot import Snapshot
from tightwire.runtime.variance import configure_variance
from tightwire.transport import Counting

log = logging.getLogger("tightwire")


class Course:
    """Which engine is in force, and every change of it.

        training --finish()--> meeting until all are finished --> training (evaluate, save, go on) or closed
        training --end of a phase, adopt(), a schedule that has measured--> meeting --> training under the next engine
        training --leave()--> meeting after the next round --> closed here, training without this rank elsewhere

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
    """

    def __init__(
        self,
        phases: Phases,
        context: RunContext,
        parameters: Callable[[], Mapping[str, Parameter]],
        on_members: Callable[[RunContext], None],
    ) -> None:
        """Begins with no engine; see `build`.

        Args:
            phases: plans and their last steps.
            context: over the members.
            parameters: returns those that are kept in step, by name.
            on_members: is told of the context when members have changed.
        """
        self.asked, self._phases = phases, spelled_out(phases)
        self.plan = self._phases.at(1)
        self.engine: Engine = LoneEngine()
        self.context, self.record = context, Record()
        self.step = 0
        self.has_left = False
        self._parameters, self._on_members = parameters, on_members

    @property
    def is_alone(self) -> bool:
        """Whether this is a world of one."""
        return self.context.transport.size == 1

    def adopt(self, plan: Plan) -> None:
        """Goes on under another plan. Every member that trains."""
        self.asked, self._phases = Phases((plan,)), spelled_out(Phases((plan,)))
        self.turn(self._phases.at(self.step + 1), keep=True)

    def go_back(self, snapshot: Snapshot, plan: Plan, *, remembering: bool) -> None:
        """Restores a snapshot and goes on under another plan, with an engine that remembers nothing else.

        Steps are counted on: they are the user's. Every member that trains, at the same step.

        Args:
            snapshot: of this member.
            plan: the same on all of them.
            remembering: whether the engine takes up what the snapshot's remembered.
        """
        self.asked, self._phases = Phases((plan,)), spelled_out(Phases((plan,)))
        plan = self._phases.at(self.step + 1)
        if not self.is_alone:
            self.meet(News(why="turn", plan=str(plan)))
        snapshot.restore()
        self.build(plan)
        if self.engine.keeps_replicas_equal:  # the snapshot may be of a plan that does not
            self._make_states_equal()
        if remembering and snapshot.engine is not None:
            self.engine.load_state_dict(snapshot.engine)

    def end_step(self) -> None:
        """Meets, where the step that has just ended calls for it. Every member that trains."""
        if self.context.membership.calls_meeting:
            self.meet(News(why="stay"))
        if self.engine.needs_rebuild():
            self._rebuild(self.meet(News(why="rebuild", measured=self.context.observed.proposal)))

    def end_phase(self) -> None:
        """Goes on with the next phase, if the last step was the last of its phase. Every member that trains."""
        if self.step in self._phases.ends:  # what stages remember of one phase means nothing in the next
            self.turn(self._phases.at(self.step + 1), keep=False)

    def go_to(self, step: int) -> None:
        """Counts on from another step, under its phase. Every member."""
        self.step = step
        if (plan := self._phases.at(step + 1)) is not self.plan:
            self.turn(plan, keep=False)

    def finish(self) -> int:
        """Meets until all are finished, and follows those that train on; returns the rank that trained longest.

        Every member, when its data is over.
        """
        while not (told := self.meet(News(why="finish"))).are_finished:
            if turn := told.first("turn"):
                self._go_on(Plan.parse(turn.plan), keep=False)
            elif told.of("rebuild"):
                self._rebuild(told)
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

    def turn(self, plan: Plan, *, keep: bool) -> None:
        """Goes on under another plan. Every member that trains.

        Args:
            plan: the same on all of them.
            keep: whether to keep what stages remember, where it means the same.
        """
        if not self.is_alone:
            self.meet(News(why="turn", plan=str(plan)))
        self._go_on(plan, keep=keep)

    def meet(self, news: News) -> Told:
        """Flushes, as all members do now, and hears why; whoever leaves is gone afterwards. Every member."""
        self.engine.flush()
        news = replace(news, step=self.step, waited_s=self.record.waited_s)
        if self.is_alone or not self.engine.flush_is_collective:
            return Told((replace(news, why="finish"),))
        told = meet(self.context.transport.inner, news)
        if (
            self.context.membership.uneven and self.engine.keeps_replicas_equal
        ):  # parameters are equal already
            self._make_states_equal()
        self.context.membership.met()
        self.record.waited_s_by_worker = tuple(other.waited_s for other in told.news)
        if leaving := told.of("leave"):
            self._go_on_without(leaving)
        return told

    def build(self, plan: Plan) -> dict[str, Any]:
        """Replaces the engine, in which nothing is under way; returns what it remembered. Every member."""
        self.plan = plan
        for member in self.context.optimizers.members:
            configure_variance(member, plan, lambda: self.engine.last_round)
        state, were_equal = self.engine.state_dict(), self.engine.keeps_replicas_equal
        self.engine.close()
        self.record.begin_plan(self.engine)
        self.engine = LoneEngine()
        if not self.is_alone:
            self.engine = build_engine(self._parameters(), plan, self.context)
            if self.engine.keeps_replicas_equal and not were_equal:
                self._make_states_equal()
        return state

    def _make_states_equal(self) -> None:
        transport = self.context.transport.inner
        make_states_equal(transport, self.context.optimizers, self._parameters(), self.step)

    def _go_on(self, plan: Plan, *, keep: bool) -> None:
        before, state = self.plan, self.build(plan)
        if state and keep:
            self._carry_over(state, before)

    def _rebuild(self, told: Told) -> None:
        """Builds the engine anew, with what was measured."""
        self.context.observed.take(told.measured)
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
