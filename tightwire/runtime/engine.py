"""What a plan becomes at run time: buckets, reducers, hooks. Replaced whole when the plan changes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.reducers.averager import Averager, Round
from tightwire.runtime.fabric import Fabric
from tightwire.runtime.gradients import Gradients
from tightwire.runtime.parameters import Parameters
from tightwire.sync import Sync


class Engine(Protocol):
    """Keeps one worker in step with the others."""

    @property
    def planned_bytes(self) -> int:
        """Payload bytes that this rank sends in the rounds begun so far, by formula."""

    @property
    def rounds(self) -> int:
        """Rounds begun so far."""

    @property
    def skipped(self) -> int:
        """Rounds whose mean was not finite, dropped on all ranks alike."""

    @property
    def exposed_s(self) -> float:
        """How long the last step only waited for others."""

    def accumulating(self, on: bool) -> None:
        """Switches averaging off while gradients accumulate locally."""

    def before_step(self) -> None:
        """Called before the optimizer's step."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step number `step`, from 1."""

    def flush(self) -> None:
        """Makes replicas equal; nothing is in flight afterwards. Every rank."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what must survive a checkpoint, tensors by parameter name."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""

    def resume_at(self, rounds: int) -> None:
        """Counts on from a checkpoint's rounds, remembering nothing else of it."""

    def close(self) -> None:
        """Takes hooks out and ends threads. Local."""


class Alone:
    """A world of one: nothing to do, exactly as plain PyTorch."""

    planned_bytes = 0
    rounds = 0
    skipped = 0
    exposed_s = 0.0

    def accumulating(self, on: bool) -> None:  # noqa: D102
        pass

    def before_step(self) -> None:  # noqa: D102
        pass

    def after_step(self, step: int) -> None:  # noqa: D102
        pass

    def flush(self) -> None:  # noqa: D102
        pass

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        pass

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        pass

    def close(self) -> None:  # noqa: D102
        pass


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


def have_finite_gradients(parameters: Iterable[Parameter]) -> bool:
    """Whether no gradient has a NaN or an Inf; on a GPU the host waits for it once."""
    gradients = [p.grad for p in parameters if p.grad is not None and p.grad.numel() > 0]
    return bool(get_total_norm(gradients, norm_type=math.inf).isfinite())


Named = Mapping[str, Mapping[str, Tensor]]


def memory(averagers: Iterable[Averager]) -> dict[str, dict[str, Tensor]]:
    """Returns copies of all that stages and reducers remember, by tensor name, then by what it is called."""
    return {
        name: {kind: kept.clone() for kind, kept in kinds.items()}
        for averager in averagers
        for name, kinds in averager.memory().items()
    }


def load_memory(averagers: Iterable[Averager], state: Named) -> None:
    """Takes up what was remembered, by tensor name, however buckets were cut when it was saved.

    Raises:
        AttachError: names the tensors whose memory is missing, unknown or of another shape; nothing is taken up.
    """
    present = {name: kinds for a in averagers for name, kinds in a.memory().items()}
    if wrong := [
        name for name in sorted({*present, *state}) if _shapes(present, name) != _shapes(state, name)
    ]:
        raise AttachError(
            f"the checkpoint's memory does not fit this model and plan: that of {', '.join(wrong[:5])} differs; "
            "load it under the plan and the model it was saved with."
        )
    for name, kinds in present.items():
        for kind, kept in kinds.items():
            kept.copy_(state[name][kind])


def _shapes(named: Named, name: str) -> dict[str, torch.Size]:
    return {kind: kept.shape for kind, kept in named.get(name, {}).items()}


def build_engine(parameters: Mapping[str, Parameter], plan: Plan, fabric: Fabric) -> Engine:
    """Builds what carries out `plan`. Every rank, in the same order: it opens channels."""
    exchanges = cast(Sync, plan.sync).exchanges
    return (
        GradientEngine(parameters, plan, fabric)
        if "gradients" in exchanges
        else ParameterEngine(parameters, plan, fabric)
    )
