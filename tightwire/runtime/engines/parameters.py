"""Mean parameters: workers step alone, and agree every so many steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.nn import Parameter

from tightwire.plan import Plan
from tightwire.reducers.averager import Round
from tightwire.runtime.engines.memory import have_finite_gradients, load_memory, memory
from tightwire.runtime.fabric import Fabric
from tightwire.runtime.parameters import Parameters
from tightwire.sync import Sync


class ParameterEngine:
    """Every so many steps, workers agree on the mean of their parameters (local methods).

    A round begins with one control message, by which workers that reached the end of their data before others go
    on taking part until all have. A worker with a NaN or Inf in its gradients drops that step, lest its optimizer's
    state be lost, and spoils the round: all workers alike go back to where it began.
    """

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, fabric: Fabric) -> None:
        self._fabric = fabric
        self._sync = cast(Sync, plan.sync)
        self._exchange = fabric.exchange(parameters, plan)
        self._control = fabric.control(1)
        self._trained = tuple(parameters.values())
        self._parameters = Parameters(parameters, self._exchange)
        self.planned_bytes = 0
        self._spoiled = False
        self.rounds = 0
        self.skipped = 0
        self.exposed_s = 0.0
        self._steps_alone = 0
        self._rounds_before = 0

    def accumulating(self, on: bool) -> None:  # noqa: D102
        pass

    def before_step(self) -> None:  # noqa: D102
        if not have_finite_gradients(self._trained):
            self._spoiled = True
            for parameter in self._trained:
                parameter.grad = None

    def after_step(self, step: int) -> None:  # noqa: D102
        self._steps_alone += 1
        self.exposed_s = 0.0
        if self._sync.averages_parameters(step):
            start_s = time.perf_counter()
            self._ask(1.0)
            self._average()
            self.exposed_s = time.perf_counter() - start_s

    def flush(self) -> None:  # noqa: D102
        while self._ask(0.0) > 0:  # others are still in a round: take part
            self._average()
        if self._ask(float(self._steps_alone > 0)) > 0:
            self._average()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        anchors = {
            name: view.clone() for anchor in self._parameters.anchors for name, view in anchor.views.items()
        }
        return {
            "rounds": self._rounds_before + self.rounds,
            "steps_alone": self._steps_alone,
            "spoiled": self._spoiled,
            "memory": memory(self._exchange.averagers),
            "anchors": anchors,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        load_memory(self._exchange.averagers, state["memory"])
        self.resume_at(state["rounds"])
        self._steps_alone, self._spoiled = state["steps_alone"], state["spoiled"]
        for anchor in self._parameters.anchors:
            anchor.pack({name: state["anchors"][name] for name in anchor.views})

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._rounds_before = rounds - self.rounds

    def close(self) -> None:  # noqa: D102
        self._exchange.close()

    def _average(self) -> None:
        self.rounds += 1
        self._steps_alone = 0
        number = self._rounds_before + self.rounds
        self.planned_bytes += self._exchange.bytes_in(number)
        now = Round(number=number, seed=self._fabric.seed + number)
        self.skipped += not self._parameters.average(now, spoiled=self._spoiled)
        self._spoiled = False

    def _ask(self, answer: float) -> float:
        """Returns the sum of all ranks' answers."""
        self.planned_bytes += self._control.bytes_sent
        answers = torch.tensor([answer])
        self._control.run(answers, answers, seed=0)
        return answers.item() * self._fabric.transport.size
