"""What is in force on a worker now: a plan and the engine that carries it out, among which members, at which step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch.nn import Parameter

from tightwire.errors import AttachError, PeerError
from tightwire.plan import Phases, Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines import Engine, LoneEngine, build_engine, remember_alike
from tightwire.runtime.phases import spelled_out
from tightwire.runtime.record import Record
from tightwire.runtime.replicas import make_states_equal
from tightwire.runtime.snapshot import Snapshot
from tightwire.runtime.variance import configure_variance
from tightwire.transport import Counting


class InForce:
    """Changed between steps alone: by `Course` where members agree to, by `Renewal` where one was lost or came.

    Attributes:
        asked: what the user wants now.
        phases: the same, with every policy that is several in turn spelled out.
        plan: in force.
        engine: that carries it out; none at first, see `begin`.
        context: over the present members.
        parameters: returns those that are kept in step, by name.
        record: of what happened.
        step: optimizer steps made so far.
        lead: how many of them this worker made while others had finished already, after which all met.
        behind: how many others made while this worker had finished, after which all met; phases count those too.
        is_stepping: whether the user's optimizers are within a step.
        began_at: the step after which the present members were together first.
        owes_states: whether what optimizers remember is still to be made equal, for the plan that has begun.
    """

    def __init__(
        self,
        phases: Phases,
        context: RunContext,
        parameters: Callable[[], Mapping[str, Parameter]],
        on_members: Callable[[RunContext], None],
    ) -> None:
        """Begins with no engine.

        Args:
            phases: plans and their last steps.
            context: over the members.
            parameters: returns those that are kept in step, by name.
            on_members: is told of the context when members have changed.
        """
        self.ask(phases)
        self.plan = self.phases.at(1)
        self.engine: Engine = LoneEngine()
        self.context, self.record, self.parameters = context, Record(), parameters
        self.step = self.lead = self.behind = self.began_at = 0
        self.owes_states = self.is_stepping = self._accumulates = False
        self._on_members = on_members

    @property
    def is_alone(self) -> bool:
        """Whether this is a world of one that nobody can join."""
        return self.context.transport.size == 1 and not self.context.membership.is_elastic

    @property
    def most_steps(self) -> int:
        """Those that the worker made that trained longest, by which phases end: equal on all that train together."""
        return self.step + self.behind

    @property
    def next_plan(self) -> Plan:
        """That the phases have for the next step."""
        return self.phases.at(self.most_steps + 1)

    def ask(self, phases: Phases) -> None:
        """Takes what the user wants from now on; the plan in force stays for the time being."""
        self.asked, self.phases = phases, spelled_out(phases)

    def accumulate(self, on: bool) -> None:
        """Switches averaging off while gradients accumulate locally, under whatever engine."""
        self._accumulates = on
        self.engine.accumulating(on)

    def take_costs(self, costs: Mapping[str, tuple[float, float]]) -> None:
        """Takes what programs were measured to take among the present members. Every member, alike."""
        self.context = replace(self.context, costs=costs)

    def move(self, transport: Counting) -> None:
        """Goes on among the members of another transport; the engine is still that of before."""
        self.context = self.context.over(transport)
        self._on_members(self.context)

    def begin(
        self, plan: Plan, *, were_equal: bool | None = None, back_to: Snapshot | None = None
    ) -> dict[str, Any]:
        """Replaces the engine, in which nothing is under way; returns what it remembered. Every member.

        Args:
            plan: of the next one.
            were_equal: whether what optimizers remember is equal on all members, where they were set back or
                loaded; None: they go on with what the engine leaves.
            back_to: is restored between the two engines: what the one leaves is not to overwrite it.
        """
        before, membership = self.engine, self.context.membership
        self.plan = plan
        for member in self.context.optimizers.members:
            configure_variance(member, plan, lambda: self.engine.last_round)
        if self.is_alone:
            return self._end(before, gives_back=False, back_to=back_to)
        self.owes_states = not (before.keeps_replicas_equal if were_equal is None else were_equal)
        number, remembered = membership.number, list[dict[str, Any]]()

        def change() -> None:
            remembered.append(self._end(before, gives_back=were_equal is None, back_to=back_to))
            self.build_engine()
            self.settle_states()

        membership.guard(change)
        return remembered[0] if number == membership.number else {}  # else all have what the furthest has

    def _end(self, engine: Engine, *, gives_back: bool, back_to: Snapshot | None) -> dict[str, Any]:
        """Closes the engine after a meeting, and returns what it remembered. Every member."""
        try:
            state = engine.state_after_meeting()
            if gives_back:
                engine.give_back()
        except PeerError:
            if self.context.membership.is_elastic:  # which goes on from the next engine, if from none yet
                self.context.transport.inner.close()
                engine.position()
                self._close(engine)
            raise
        self._close(engine)
        if back_to is not None:
            back_to.restore()
        return state

    def _close(self, engine: Engine) -> None:
        engine.close()
        self.record.begin_plan(engine)
        self.engine = LoneEngine()

    def go_on(self, plan: Plan, *, keep: bool) -> None:
        """Begins another plan, or the same anew. Every member.

        Args:
            plan: the same on all of them.
            keep: whether to keep what stages remember, where it means the same.
        """
        before, state = self.plan, self.begin(plan)
        if state and keep:
            self._carry_over(state, before)

    def _carry_over(self, state: Mapping[str, Any], before: Plan) -> None:
        """Takes up what was remembered under the plan before, if it means the same under this one."""
        if remember_alike(before, self.plan):
            with suppress(AttachError):  # it remembers something else
                self.context.membership.guard(lambda: self.engine.load_state_dict(state))
                return
        if state["memory"]:
            warnings.warn(
                f"leftovers and momenta of {before} are dropped: they mean nothing under {self.plan}.",
                stacklevel=4,
            )

    def build_engine(self) -> None:
        """Builds what carries out the plan in force. Every member.

        Raises:
            AttachError: members are elastic, and the plan cannot do without one that dies.
        """
        self.engine, plan = LoneEngine(), self.plan
        if self.context.membership.is_elastic:
            plan = replace(plan, architecture=plan.architecture.fitted(self.context.transport.size))
        engine = build_engine(self.parameters(), plan, self.context)
        if self.context.membership.is_elastic and not engine.survives:
            engine.close()
            raise AttachError(
                f"tightwire.init(elastic=True) was asked for, and {plan} cannot yet do without a worker that dies; "
                "bsp, delayed and acco over an all-reduce, local methods (local:8, diloco:30), servers and gossip can."
            )
        engine.accumulating(self._accumulates)
        self.engine = engine

    def settle_states(self) -> None:
        """Makes what optimizers remember equal, where it is owed to the plan in force. Every member."""
        if self.owes_states and self.engine.keeps_replicas_equal:
            self.make_states_equal()
        self.owes_states = False

    def make_states_equal(self) -> None:
        """Makes what optimizers remember equal; parameters are so already. Every member; blocks."""
        make_states_equal(
            self.context.transport.inner, self.context.optimizers, self.parameters(), self.most_steps
        )
