"""Mean gradients: every backward pass ends with an agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.round import Round
from tightwire.plan import Plan
from tightwire.runtime.agreement import copy_from_longest
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine
from tightwire.runtime.engines.memory import have_finite_gradients, load_memory, memory
from tightwire.runtime.gradients import Gradients
from tightwire.runtime.observed import Watch
from tightwire.runtime.overlap.forward import ForwardOverlap, NoOverlap


class GradientEngine(BaseEngine):
    """Every backward pass ends with the mean gradient, or with the means on their way (bsp)."""

    rounds = 0
    planned_bytes = 0
    exposed_s = 0.0

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        self._context = context
        self._exchange = context.exchange(parameters, plan)
        self._control = context.control(len(parameters) + 1)
        self.gradients = Gradients(parameters, self._exchange, self._count_users, context.tracer)
        self.gradients.before_round = self._before_round
        self._parameters = parameters
        self._rounds_before = 0
        self._trained_rounds = 0
        self._uneven = False
        schedule = plan.schedule
        self._flight = self._take_off(str(schedule)) if schedule.overlaps_forward else NoOverlap()
        self._watch = Watch(self._exchange) if schedule.measures and context.observed.wire is None else None

    @property
    def skipped(self) -> int:
        """Rounds whose mean was not finite."""
        return self.gradients.nonfinite_rounds

    def accumulating(self, on: bool) -> None:  # noqa: D102
        self.gradients.enabled = not on

    def wait(self) -> None:  # noqa: D102
        self._flight.wait()

    def before_step(self) -> None:  # noqa: D102
        self.exposed_s = self.gradients.take_exposed_s() + self._flight.take_exposed_s()
        if self._flight.before_step():
            return
        self.gradients.settle()
        if not self.gradients.finite:
            self.gradients.finite = True
            if not have_finite_gradients(self._parameters.values()):
                self.gradients.forget()

    def after_step(self, step: int) -> None:  # noqa: D102
        self._flight.after_step()

    def needs_rebuild(self) -> bool:  # noqa: D102
        if self._watch is None or not self._watch.note(self.gradients.ready_s):
            return False
        self._flight.ground()
        self._context.observed.agree(self._context.transport.inner, self._watch.ready_s(), self._watch.wire())
        return True

    def flush(self) -> None:
        """Sends zeros in the passes of ranks whose training goes on, and ends with the parameters of the last one."""
        self._flight.ground()
        while self._count_present(0.0) > 0:
            self._exchange.begin(self._before_round())
            for bucket in self._exchange.buckets:
                bucket.flat.zero_()
            self._exchange.end()
            self._exchange.wait()
        self.planned_bytes += self._control.bytes_sent
        if self._uneven:
            self.planned_bytes += copy_from_longest(
                self._context.transport, self._parameters.values(), self._trained_rounds
            )
        self._uneven, self.gradients.share = False, 1.0

    def consensus(self) -> Mapping[str, Tensor]:  # noqa: D102
        self._flight.ground()
        return {}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        self._flight.ground()
        return {
            "rounds": self._rounds_before + self.rounds,
            "memory": memory(self._exchange.averagers),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._flight.ground()
        load_memory(self._exchange.averagers, state["memory"])
        self.resume_at(state["rounds"])

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._rounds_before = rounds - self.rounds

    def close(self) -> None:  # noqa: D102
        self._flight.close()
        self.gradients.remove()
        self._exchange.close()

    def _take_off(self, schedule: str) -> ForwardOverlap:
        return ForwardOverlap(
            self._parameters,
            self.gradients,
            self._exchange,
            self._count_users,
            self._context.model,
            self._context.optimizer,
            self._context.tracer,
            why=schedule,
            awaits_means=self._context.awaits_means,
        )

    def _before_round(self) -> Round:
        self.rounds += 1
        number = self._rounds_before + self.rounds
        self.planned_bytes += self._exchange.bytes_in(number) + self._control.bytes_sent
        return Round(number=number, seed=self._context.seed + number, scale=self._context.gradient_scale())

    def _count_users(self, used: Tensor) -> Tensor:
        self._trained_rounds += 1
        return self._count(torch.cat([used, used.new_ones(1)]))[:-1]

    def _count_present(self, mine: float) -> int:
        """Returns how many ranks are in a pass now."""
        ballot = torch.zeros(len(self._parameters) + 1)
        ballot[-1] = mine
        return round(self._count(ballot)[-1].item())

    def _count(self, ballot: Tensor) -> Tensor:
        """Adds up over ranks which parameters took part, and last, who is in a pass."""
        size = self._context.transport.size
        self._control.run(ballot, ballot, seed=0)
        counts = ballot * size
        if 0 < (present := round(counts[-1].item())) < size:
            self._uneven = True
        self.gradients.share = size / max(present, 1)
        return counts
