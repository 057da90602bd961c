"""Mean gradients: every backward pass ends with an agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from tightwire.plan import Plan
from tightwire.reducers.averager import Round
from tightwire.runtime.engines.memory import have_finite_gradients, load_memory, memory
from tightwire.runtime.fabric import Fabric
from tightwire.runtime.gradients import Gradients


class GradientEngine:
    """Every backward pass ends with the mean gradient (bsp)."""

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, fabric: Fabric) -> None:
        self._fabric = fabric
        self._exchange = fabric.exchange(parameters, plan)
        self._control = fabric.control(len(parameters))
        self.gradients = Gradients(parameters, self._exchange, self._count_users, fabric.tracer)
        self.gradients.before_round = self._before_round
        self._parameters = parameters
        self.rounds = 0
        self.planned_bytes = 0
        self.exposed_s = 0.0
        self._rounds_before = 0

    @property
    def skipped(self) -> int:
        """Rounds whose mean was not finite."""
        return self.gradients.nonfinite_rounds

    def accumulating(self, on: bool) -> None:  # noqa: D102
        self.gradients.enabled = not on

    def before_step(self) -> None:  # noqa: D102
        self.exposed_s = self.gradients.take_exposed_s()
        self.gradients.settle()
        if not self.gradients.finite:
            self.gradients.finite = True
            if not have_finite_gradients(self._parameters.values()):
                self.gradients.forget()

    def after_step(self, step: int) -> None:  # noqa: D102
        pass

    def flush(self) -> None:  # noqa: D102
        pass  # nothing outlives a backward pass

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {
            "rounds": self._rounds_before + self.rounds,
            "memory": memory(self._exchange.averagers),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        load_memory(self._exchange.averagers, state["memory"])
        self.resume_at(state["rounds"])

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._rounds_before = rounds - self.rounds

    def close(self) -> None:  # noqa: D102
        self.gradients.remove()
        self._exchange.close()

    def _before_round(self) -> Round:
        self.rounds += 1
        number = self._rounds_before + self.rounds
        self.planned_bytes += self._exchange.bytes_in(number) + self._control.bytes_sent
        return Round(number=number, seed=self._fabric.seed + number, scale=self._fabric.gradient_scale())

    def _count_users(self, used: Tensor) -> Tensor:
        self._control.run(used, used, seed=0)
        return used * self._fabric.transport.size
