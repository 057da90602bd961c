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

from tightwire.attach.exchange import Exchange
from tightwire.attach.fabric import Fabric
from tightwire.attach.gradients import Gradients
from tightwire.attach.parameters import Parameters
from tightwire.errors import AttachError
from tightwire.plan import Plan
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
        self.exposed_s = 0.0
        self._rounds_before = 0

    @property
    def planned_bytes(self) -> int:
        """What a round sends, times rounds."""
        return self.rounds * (self._exchange.bytes_per_round + self._control.bytes_sent)

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
            "leftovers": leftovers(self._exchange),
            "reducers": memories(self._exchange),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._rounds_before = state["rounds"] - self.rounds
        load_leftovers(self._exchange, state["leftovers"])
        load_memories(self._exchange, state["reducers"])

    def close(self) -> None:  # noqa: D102
        self.gradients.remove()
        self._exchange.close()

    def _before_round(self) -> tuple[int, float]:
        self.rounds += 1
        return self._fabric.seed + self._rounds_before + self.rounds, self._fabric.gradient_scale()

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
        self._asked = 0
        self._spoiled = False
        self.rounds = 0
        self.skipped = 0
        self.exposed_s = 0.0
        self._steps_alone = 0
        self._rounds_before = 0

    @property
    def planned_bytes(self) -> int:
        """What rounds and the control messages around them send."""
        return self.rounds * self._exchange.bytes_per_round + self._asked * self._control.bytes_sent

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
            "leftovers": leftovers(self._exchange),
            "reducers": memories(self._exchange),
            "anchors": anchors,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._rounds_before, self._steps_alone = state["rounds"] - self.rounds, state["steps_alone"]
        self._spoiled = state["spoiled"]
        load_leftovers(self._exchange, state["leftovers"])
        load_memories(self._exchange, state["reducers"])
        for anchor in self._parameters.anchors:
            anchor.pack({name: state["anchors"][name] for name in anchor.views})

    def close(self) -> None:  # noqa: D102
        self._exchange.close()

    def _average(self) -> None:
        self.rounds += 1
        self._steps_alone = 0
        seed = self._fabric.seed + self._rounds_before + self.rounds
        self.skipped += not self._parameters.average(seed=seed, spoiled=self._spoiled)
        self._spoiled = False

    def _ask(self, answer: float) -> float:
        """Returns the sum of all ranks' answers."""
        self._asked += 1
        answers = torch.tensor([answer])
        self._control.run(answers, answers, seed=0)
        return answers.item() * self._fabric.transport.size


def have_finite_gradients(parameters: Iterable[Parameter]) -> bool:
    """Whether no gradient has a NaN or an Inf; on a GPU the host waits for it once."""
    gradients = [p.grad for p in parameters if p.grad is not None and p.grad.numel() > 0]
    return bool(get_total_norm(gradients, norm_type=math.inf).isfinite())


def leftovers(exchange: Exchange) -> dict[str, Tensor]:
    """Returns copies of all leftovers by tensor name."""
    return {name: view.clone() for a in exchange.averagers for name, view in a.leftovers().items()}


def load_leftovers(exchange: Exchange, state: Mapping[str, Tensor]) -> None:
    """Takes up leftovers by tensor name, however buckets were cut when they were saved.

    Raises:
        AttachError: names the tensors that are missing, unknown or of another shape.
    """
    present = {name: view for a in exchange.averagers for name, view in a.leftovers().items()}
    _load("leftovers", present, state)


def memories(exchange: Exchange) -> dict[str, Tensor]:
    """Returns copies of what reducers remember, by tensor name."""
    return {name: kept.clone() for a in exchange.averagers for name, kept in a.reducer.memory().items()}


def load_memories(exchange: Exchange, state: Mapping[str, Tensor]) -> None:
    """Takes up what reducers remembered, however buckets were cut when it was saved.

    Raises:
        AttachError: names the tensors that are missing, unknown or of another shape.
    """
    present = {name: kept for a in exchange.averagers for name, kept in a.reducer.memory().items()}
    _load("memory of reducers", present, state)


def _load(what: str, present: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    wrong = sorted(present.keys() ^ state.keys()) or [
        n for n, v in present.items() if v.shape != state[n].shape
    ]
    if wrong:
        raise AttachError(
            f"the checkpoint's {what} do not fit this model and plan: {', '.join(wrong[:5])} differ; "
            "load it under the plan and the model it was saved with."
        )
    for name, tensor in present.items():
        tensor.copy_(state[name])


def build_engine(parameters: Mapping[str, Parameter], plan: Plan, fabric: Fabric) -> Engine:
    """Builds what carries out `plan`. Every rank, in the same order: it opens channels."""
    exchanges = cast(Sync, plan.sync).exchanges
    return (
        GradientEngine(parameters, plan, fabric)
        if "gradients" in exchanges
        else ParameterEngine(parameters, plan, fabric)
    )
