"""Parameters that groups of ranks share, averaged beside those of all: experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from tightwire.plan import Plan
from tightwire.runtime.agreement import copy_from_first
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine
from tightwire.runtime.engines.gradients import GradientEngine
from tightwire.runtime.engines.parameters import ParameterEngine
from tightwire.runtime.groups import require_alone, trained
from tightwire.runtime.membership import Membership
from tightwire.schedule import Wfbp
from tightwire.sync import Rounds

Member = GradientEngine | ParameterEngine


class GroupedEngine(BaseEngine):
    """An engine for what all ranks share, and one of the same kind for each group that this rank is in.

    All do the same at the same time, that of all ranks first. What is not finite in a group is skipped by that group.

    Contract: as that of the engine of all ranks.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        plan: Plan,
        context: RunContext,
        build: Callable[[Mapping[str, Parameter], Plan, RunContext], Any],
    ) -> None:
        _require_simple(plan, context)
        all_ranks = build(parameters, plan, context)
        within = plan.having(schedule=Wfbp()) if plan.schedule.overlaps_forward else plan
        engines, self._shared = [all_ranks], []
        for sharing in context.groups:
            small = dataclasses.replace(
                context.over(sharing.transport),
                membership=Membership(tuple(range(sharing.transport.size))),
                workers_per_node=0,
                habits=None,
                groups=(),
            )
            shared = trained(sharing, context.model)
            self._shared.append((sharing.transport, shared))
            engines.append(build(shared, within, small))
        self._main: Member = all_ranks
        self._others: tuple[Member, ...] = tuple(engines[1:])
        self.keeps_replicas_equal = all_ranks.keeps_replicas_equal
        self.compares_replicas = all_ranks.compares_replicas
        if isinstance(all_ranks, GradientEngine):
            led = [other.gradients for other in self._others if isinstance(other, GradientEngine)]
            all_ranks.gradients.lead(led)
        self._settle, context.membership.settle = context.membership.settle, self._follow
        self._membership = context.membership

    @property
    def planned_bytes(self) -> int:  # type: ignore[override]  # noqa: D102
        return sum(engine.planned_bytes for engine in self._all)

    @property
    def rounds(self) -> int:  # type: ignore[override]  # noqa: D102
        return self._main.rounds

    @property
    def last_round(self) -> int:  # type: ignore[override]  # noqa: D102
        return self._main.last_round

    @property
    def skipped(self) -> int:  # type: ignore[override]
        """Rounds that were skipped by all, or by a group that this rank is in."""
        return sum(engine.skipped for engine in self._all)

    @property
    def exposed_s(self) -> float:  # type: ignore[override]  # noqa: D102
        return sum(engine.exposed_s for engine in self._all)

    @property
    def is_silent(self) -> bool:  # type: ignore[override]  # noqa: D102
        return all(engine.is_silent for engine in self._all)

    def accumulating(self, on: bool) -> None:  # noqa: D102
        for engine in self._all:
            engine.accumulating(on)

    def skip(self) -> None:  # noqa: D102
        self._main.skip()

    def begin_backward(self) -> None:  # noqa: D102
        self._main.begin_backward()

    def before_step(self) -> None:  # noqa: D102
        for engine in self._all:
            engine.before_step()

    def more_gradients(self) -> None:  # noqa: D102
        for engine in self._all:
            engine.more_gradients()

    def after_step(self, step: int) -> None:  # noqa: D102
        for engine in self._all:
            engine.after_step(step)

    def wait(self) -> None:  # noqa: D102
        self._main.wait()

    def needs_rebuild(self) -> bool:  # noqa: D102
        return self._main.needs_rebuild()

    def flush(self) -> None:
        """Takes part in the others' rounds, of all ranks and of groups by turns."""
        for engine in self._all:
            engine.flush()

    def consensus(self) -> Mapping[str, Tensor] | None:
        """Returns what all ranks agree on; what a group shares stays as this rank has it."""
        return self._main.consensus()

    def observe(self, *, loss: float | None = None, samples: float | None = None) -> None:  # noqa: D102
        for engine in self._all:
            engine.observe(loss=loss, samples=samples)

    def weigh(self, weight: float) -> None:  # noqa: D102
        for engine in self._all:
            engine.weigh(weight)

    def staleness(self) -> Mapping[int, int]:  # noqa: D102
        return self._main.staleness()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self._main.state_dict() | {"groups": [engine.state_dict() for engine in self._others]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._main.load_state_dict(state)
        for engine, kept in zip(self._others, state["groups"], strict=True):
            engine.load_state_dict(kept)

    def load_merged(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Takes up what all ranks remembered; what groups did is begun anew, from the lowest rank's parameters."""
        self._main.load_merged([{k: v for k, v in state.items() if k != "groups"} for state in states])
        self._begin_groups(states[0]["rounds"])

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._main.resume_at(rounds)
        self._begin_groups(rounds)

    def close(self) -> None:  # noqa: D102
        self._membership.settle = self._settle
        for engine in self._all:
            engine.close()

    @property
    def _all(self) -> tuple[Member, ...]:
        return (self._main, *self._others)

    def _follow(self) -> None:
        """Makes the groups' part of a round that ranks make whose training goes on, on one that is finished."""
        self._settle()
        for engine in self._others:
            engine.follow()

    def _begin_groups(self, rounds: int) -> None:
        for (transport, shared), engine in zip(self._shared, self._others, strict=True):
            copy_from_first(transport.inner, shared.values())
            engine.resume_at(rounds)


def _require_simple(plan: Plan, context: RunContext) -> None:
    """Makes sure that all ranks meet at the same steps, so that groups can meet after all have.

    Raises:
        AttachError: they do not.
    """
    name = plan.architecture.engine or plan.sync.engine
    sync = plan.sync
    is_rounds = isinstance(sync, Rounds) and not (
        sync.steps_inside or sync.follows_loss or sync.steps_late or sync.quorum_of
    )
    is_whole = plan.schedule.name != "streaming"
    if (
        not (name == "gradients" or (name == "rounds" and is_rounds and is_whole))
        or context.membership.is_elastic
    ):
        require_alone(context.groups, str(plan))
