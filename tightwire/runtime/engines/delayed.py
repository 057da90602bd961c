"""Delayed gradients: each step is made with the mean of an earlier one, while its own is on its way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from tightwire.architecture.round import Round
from tightwire.buckets import Bucket
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.agreement import copy_from_longest
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine
from tightwire.runtime.engines.memory import load_memory, memory
from tightwire.sync import Delayed

BALLOT = "bsp/allreduce:recursive-doubling/none/sequential"


class Slot:
    """One step's gradients on their way, and beside them who sent any.

    Attributes:
        exchange: of the gradients.
        busy: whether means are on their way, or here and not yet stepped with.
        step: of the gradients.
    """

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        self.exchange = context.exchange(parameters, plan)
        self.ballots = context.exactly().exchange(
            {"ballot": torch.zeros(len(parameters) + 1)}, Plan.parse(BALLOT)
        )
        self.busy = False
        self.step = 0
        self._workers = context.transport.size
        self._finite: bool | None = None
        self._votes: list[float] | None = None

    def bytes_in(self, number: int) -> int:
        """Returns what this rank sends of gradients in a round."""
        return self.exchange.bytes_in(number)

    @property
    def ballot_bytes(self) -> int:
        """What this rank sends to tell who sent."""
        return self.ballots.bytes_in(1)

    def vote(self, used: list[bool], *, present: bool) -> None:
        """Starts to tell which parameters have a gradient here, and whether training goes on."""
        self._votes = None
        self.ballots.begin(Round())
        flat = self.ballots.buckets[0].flat
        flat.copy_(torch.tensor([*map(float, used), float(present)]))
        self.ballots.end()

    def votes(self) -> list[float]:
        """Waits for the sums over ranks of what they told."""
        if self._votes is None:
            self.ballots.wait()
            self._votes = (self.ballots.buckets[0].flat * self._workers).tolist()
        return self._votes

    def start(self, gradients: Mapping[str, Tensor | None], now: Round, step: int) -> None:
        """Sends gradients on their way."""
        self.busy, self.step, self._finite = True, step, None
        self.exchange.begin(now)
        for number, bucket in enumerate(self.exchange.buckets):
            for name, view in bucket.views.items():
                gradient = gradients[name]
                view.zero_() if gradient is None else view.copy_(gradient)
            self.exchange.ready(number)
        self.exchange.end()

    def arrive(self) -> bool:
        """Waits until the means are here; returns whether they are finite."""
        if self._finite is None:
            self._finite = self.exchange.wait()
        return self._finite

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the means that are here or on their way, which are waited for."""
        state: dict[str, Any] = {
            "memory": memory(self.exchange.averagers),
            "busy": self.busy,
            "step": self.step,
        }
        if self.busy:
            state |= {"finite": self.arrive(), "votes": self.votes()}
            state["means"] = {n: v.clone() for b in self.exchange.buckets for n, v in b.views.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        load_memory(self.exchange.averagers, state["memory"])
        self.busy, self.step = state["busy"], state["step"]
        if self.busy:
            self._finite, self._votes = state["finite"], state["votes"]
            for bucket in self.exchange.buckets:
                bucket.pack({name: state["means"][name] for name in bucket.views})


class DelayedEngine(BaseEngine):
    """Step t is made with the mean gradient of step t − s; until then `p.grad` is the worker's own.

    s slots take turns. A step takes the means out of the slot whose turn it is and puts its own gradients there. A
    worker whose data is over goes on filling slots with zeros until all are done.
    """

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        assert isinstance(plan.sync, Delayed), plan.sync
        _require_plain(plan, context)
        self._context, self._parameters = context, parameters
        self._slots = [Slot(parameters, plan, context) for _ in range(plan.sync.steps)]
        layouts = [bucket.layout for bucket in self._slots[0].exchange.buckets]
        # Two, by turns: a gradient that the user did not drop is in the one stepped with last.
        self._means = [[Bucket(layout) for layout in layouts] for _ in range(2)]
        self.planned_bytes = self.rounds = self.skipped = 0
        self.exposed_s = 0.0
        self._number = 0  # rounds, counted on from a checkpoint
        self._steps = 0
        self._uneven = False
        self._ages: Counter[int] = Counter()

    def accumulating(self, on: bool) -> None:  # noqa: D102
        pass

    def before_step(self) -> None:  # noqa: D102
        self._steps += 1
        slot = self._slots[self._number % len(self._slots)]
        means = self._take(slot) if slot.busy else None
        gradients = {name: p.grad for name, p in self._parameters.items()}
        slot.vote([g is not None for g in gradients.values()], present=True)
        self._start(slot, gradients)
        for name, parameter in self._parameters.items():
            parameter.grad = None if means is None else means[name]

    def after_step(self, step: int) -> None:  # noqa: D102
        pass

    def flush(self) -> None:  # noqa: D102
        trained, unused = self._steps, [False] * len(self._parameters)
        while True:
            slot = self._slots[self._number % len(self._slots)]
            means = self._take(slot) if slot.busy else None
            slot.vote(unused, present=False)
            self.planned_bytes += slot.ballot_bytes
            if round(slot.votes()[-1]) == 0:
                break
            self._uneven = True  # this worker's own model is left behind, and replaced in the end
            self._start(slot, dict.fromkeys(self._parameters), voted=True)
        if means is not None:
            self._step_with(means)
        self._drain()
        if self._uneven:
            transport = self._context.transport
            self.planned_bytes += copy_from_longest(transport, self._parameters.values(), trained)
        self._uneven = False

    def consensus(self) -> Mapping[str, Tensor]:
        """Steps with what is on its way."""
        self._drain()
        return {}

    def staleness(self) -> Mapping[int, int]:  # noqa: D102
        return self._ages

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        slots = [slot.state_dict() for slot in self._slots]
        return {"rounds": self._number, "steps": self._steps, "slots": slots, "memory": slots[0]["memory"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        for slot, kept in zip(self._slots, state["slots"], strict=True):
            slot.load_state_dict(kept)
        self._number, self._steps = state["rounds"], state["steps"]

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._number = rounds

    def close(self) -> None:  # noqa: D102
        for slot in self._slots:
            slot.exchange.close()
            slot.ballots.close()

    def _start(self, slot: Slot, gradients: Mapping[str, Tensor | None], *, voted: bool = False) -> None:
        self._number += 1
        self.rounds += 1
        self.planned_bytes += slot.bytes_in(self._number) + (0 if voted else slot.ballot_bytes)
        slot.start(gradients, Round(number=self._number, seed=self._context.seed + self._number), self._steps)

    def _take(self, slot: Slot) -> dict[str, Tensor | None]:
        """Takes the means out of a slot; None for a parameter that nobody used, and for all if one is not finite."""
        start_s = time.perf_counter()
        finite, (*users, present) = slot.arrive(), slot.votes()
        slot.busy = False
        self.exposed_s = time.perf_counter() - start_s
        self._uneven = self._uneven or 0 < round(present) < self._context.transport.size
        if not finite:
            self.skipped += 1
            return dict.fromkeys(self._parameters)
        self._ages[self._steps - slot.step] += 1
        self._means.reverse()
        share = self._context.transport.size / max(round(present), 1)
        for mean, bucket in zip(self._means[0], slot.exchange.buckets, strict=True):
            torch.mul(bucket.flat, share, out=mean.flat)
        views = {name: view for mean in self._means[0] for name, view in mean.views.items()}
        return {
            name: views[name] if count > 0.5 or bool(views[name].any()) else None
            for name, count in zip(self._parameters, users, strict=True)
        }

    def _drain(self) -> None:
        """Steps with all means that are here or on their way, oldest first."""
        for turn in range(len(self._slots)):
            slot = self._slots[(self._number + turn) % len(self._slots)]
            if slot.busy:
                self._step_with(self._take(slot))

    def _step_with(self, means: Mapping[str, Tensor | None]) -> None:
        own = {name: p.grad for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.grad = means[name]
        _step_unseen(self._context.optimizer)
        for name, parameter in self._parameters.items():
            parameter.grad = own[name]


def _step_unseen(optimizer: Optimizer) -> None:
    """Makes a step without hooks: it belongs to a step that was counted before."""
    step = type(optimizer).step
    unhooked = getattr(step, "__wrapped__", step) if getattr(step, "hooked", False) else step
    unhooked(optimizer)


def _require_plain(plan: Plan, context: RunContext) -> None:
    """Makes sure that steps can be made with other gradients than those just computed.

    Raises:
        AttachError: LBFGS, or a GradScaler.
    """
    if isinstance(context.optimizer, LBFGS):
        raise AttachError(
            f"LBFGS computes gradients within its step, and {plan.sync} replaces them by earlier ones before it; "
            "choose another optimizer, or bsp."
        )
    if context.awaits_means:
        raise AttachError(
            f"a GradScaler drops steps whose own gradients overflow, and under {plan.sync} each worker would drop "
            "steps of its own; train in bfloat16 without a scaler, or choose bsp."
        )
