"""Segments: parameters that agree together, with whom, and at which steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.nn import Parameter

from tightwire.errors import AttachError
from tightwire.optim import OneBitAdam
from tightwire.plan import Plan
from tightwire.runtime.ahead import Ahead
from tightwire.runtime.context import RunContext
from tightwire.runtime.membership import Roll
from tightwire.runtime.momenta import Momenta
from tightwire.runtime.outer import Elastic, OuterStep, TakeMean, outer_step
from tightwire.runtime.parameters import Parameters
from tightwire.runtime.watch import NormWatch
from tightwire.schedule import Sequential, Streaming, TensorFacts
from tightwire.sync import EASGD, HierarchicalLocal, Rounds
from tightwire.transport import Counting


class Segment:
    """The whole model or a fragment of it, agreeing among all workers or inside a node.

    Attributes:
        parameters: what agrees.
        roll: by which a round begins; groups among the same workers share it.
        workers: how many agree.
        period: steps between rounds.
        first: the step of the first one, from where the segment begins.
        late: steps made while an exchange travels.
        covers: segments that a round of this one makes superfluous.
        due: the step after which the next round begins.
        lands_at: the step after which the exchange under way lands.
        number: rounds begun, counted on from a checkpoint.
        alone: steps since the last round began.
        present: weight of those whose changes are under way.
        counts: whether this worker's are among them.
        samples: that steps were made on since the last round began, or weights.
        sent_samples: those of the round that began last.
        landed: rounds whose outcome is here, counted on from a checkpoint.
        closes: whether the round that began last is one out of turn, in which all end together.
        watch: weighs this worker's changes by their norm, or None.
    """

    def __init__(
        self,
        parameters: Parameters,
        roll: Roll,
        workers: int,
        *,
        period: int,
        first: int,
        late: int = 0,
        watch: NormWatch | None = None,
    ) -> None:
        self.parameters, self.roll, self.workers = parameters, roll, workers
        self.period, self.first, self.late = period, first, late
        self.covers: tuple[Segment, ...] = ()
        self.watch = watch
        self.number = 0
        self.present = 0.0
        self.counts = False
        self.samples = self.sent_samples = 0.0
        self.landed = 0
        self.restart()

    def restart(self) -> None:
        """Counts steps from 0: all agree, and nothing is under way."""
        self.due, self.lands_at, self.alone, self.closes = self.first, 0, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Returns when this segment does what; plain numbers."""
        return {
            "due": self.due,
            "lands_at": self.lands_at,
            "alone": self.alone,
            "samples": self.samples,
            "number": self.number,
            "present": self.present,
            "landed": self.landed,
            "watch": None if self.watch is None else self.watch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.due, self.lands_at, self.alone = state["due"], state["lands_at"], state["alone"]
        self.number, self.present = state["number"], state["present"]
        self.landed = state.get("landed", self.number)
        self.samples = state.get("samples", 0.0)
        if self.watch is not None:
            self.watch.load_state_dict(state["watch"])

    def interrupt(self, clock: int) -> None:
        """Takes a round under way as one that is still to begin, at once; or when all end together, if it closes."""
        if self.parameters.under_way:
            self.parameters.abandon()
            self.number -= 1
            self.due, self.lands_at = self.due if self.closes else clock, 0
            self.alone = max(self.alone, int(self.counts))
            self.samples += self.sent_samples


def build_segments(
    parameters: Mapping[str, Parameter], plan: Plan, sync: Rounds, context: RunContext
) -> tuple[tuple[Segment, ...], Segment | None]:
    """Builds the segments over all workers, and the one inside this rank's node if the policy has one.

    Contract: every rank, in the same order: it opens channels.
    """
    roll = context.roll(sync.roll_numbers)
    if isinstance(plan.schedule, Streaming):
        return _fragments(parameters, plan, sync, plan.schedule, context, roll), None
    everything = Segment(
        _parameters(parameters, plan, sync, context, late=sync.steps_late > 0),
        roll,
        context.transport.size,
        period=sync.steps_per_round,
        first=sync.steps_of(1),
        late=sync.steps_late,
        watch=_watch(sync),
    )
    inside = _inside(parameters, plan, sync, context) if sync.steps_inside else None
    if inside is not None:
        everything.covers = (inside,)
    return (everything,), inside


def _parameters(
    parameters: Mapping[str, Parameter],
    plan: Plan,
    sync: Rounds,
    context: RunContext,
    *,
    late: bool = False,
    blend: float | None = None,
) -> Parameters:
    step, pull = _outer_step(parameters, sync, context)
    clip = sync.guard.clip if sync.guard is not None else math.inf
    exchange = context.exchange(parameters, plan)
    ahead = _ahead(sync, context)
    return Parameters(parameters, exchange, step, late=late, blend=blend, pull=pull, clip=clip, ahead=ahead)


def _ahead(sync: Rounds, context: RunContext) -> Ahead | None:
    """Returns what goes on before means are there, where the policy is eager."""
    if not sync.is_eager:
        return None
    if context.outer is not None:
        raise AttachError(
            f"{sync} takes the outer step apart, which is right for SGD with momentum only: leave out `outer`, or "
            "eager=true."
        )
    return Ahead(outer_step(sync.outer, None, context.optimizers), context.transport.size)


def _watch(sync: Rounds) -> NormWatch | None:
    return None if sync.guard is None else NormWatch(sync.guard)


def _outer_step(
    parameters: Mapping[str, Parameter], sync: Rounds, context: RunContext
) -> tuple[OuterStep, float]:
    """Returns what follows the mean, and by how much workers are drawn to the centre."""
    if isinstance(sync, EASGD):
        force = sync.force(context.transport.size)
        return Elastic(force), force
    if sync.optimizer_state == "momenta":
        (optimizer,) = context.optimizers.members
        assert isinstance(optimizer, OneBitAdam), "`configure_variance` refuses others"
        if context.outer is not None:
            raise AttachError(f"{sync} has an outer step of its own: leave out `outer`, or state=momenta.")
        return Momenta(optimizer, parameters), 0.0
    return outer_step(sync.outer, context.outer, context.optimizers), 0.0


def _fragments(
    parameters: Mapping[str, Parameter],
    plan: Plan,
    sync: Rounds,
    streaming: Streaming,
    context: RunContext,
    roll: Roll,
) -> tuple[Segment, ...]:
    """One segment per fragment, with rounds H/fragments steps apart."""
    names, period = list(parameters), sync.steps_per_round
    facts = [TensorFacts(num_bytes=p.numel() * p.itemsize) for p in parameters.values()]
    whole = plan.having(schedule=Sequential())  # within a fragment
    segments = []
    for turn, run in enumerate(streaming.split(facts), start=1):
        fragment = {names[p]: parameters[names[p]] for p in run}
        late = streaming.overlap > 0
        blend = streaming.alpha if late else None
        made = _parameters(fragment, whole, sync, context, late=late, blend=blend)
        first = period * turn // streaming.fragments
        workers, watch = context.transport.size, _watch(sync)
        segments.append(
            Segment(made, roll, workers, period=period, first=first, late=streaming.overlap, watch=watch)
        )
    return tuple(segments)


def _inside(parameters: Mapping[str, Parameter], plan: Plan, sync: Rounds, context: RunContext) -> Segment:
    """The segment inside this rank's node; all ranks open all nodes' groups."""
    assert isinstance(sync, HierarchicalLocal), sync
    node, workers = sync.node or context.workers_per_node, context.transport.size
    if not node or workers % node:
        whole = next(k for k in range(min(2, workers), workers + 1) if workers % k == 0)
        raise AttachError(
            f"{sync} agrees inside nodes, and {workers} workers do not make whole nodes of {node or 'unknown size'}; "
            "start them with torchrun (LOCAL_WORLD_SIZE), or write for example "
            f"{replace(sync, node=whole)}."
        )
    groups = [context.transport.group(range(first, first + node)) for first in range(0, workers, node)]
    group = next(group for group in groups if group is not None)
    assert isinstance(group, Counting)
    small = context.over(group)
    exchange = small.exchange(parameters, plan)
    made = Parameters(parameters, exchange, TakeMean())
    return Segment(
        made, small.roll(sync.roll_numbers), node, period=sync.steps_inside, first=sync.steps_inside
    )
