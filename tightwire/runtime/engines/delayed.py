"""Delayed gradients: each step is made with the mean of an earlier one, while its own is on its way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS

from tightwire.architecture.round import Round
from tightwire.buckets import Bucket
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.background import Background
from tightwire.runtime.checkpoint import merged
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine, Position
from tightwire.runtime.engines.memory import (
    fitting,
    load_memory,
    memory,
    of_own_size,
    rescale,
    shared_part,
)
from tightwire.runtime.membership import Called
from tightwire.sync import Acco, Delayed


class Turn:
    """One step's gradients on their way, and beside them who sent any. `DelayedEngine` has several.

    Attributes:
        exchange: of the gradients.
        busy: whether means are on their way, or here and not yet stepped with.
        step: of the gradients.
        unit: of weights, in which stages remember gradients.
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext, thread: Background
    ) -> None:
        self.exchange = context.exchange(parameters, plan)
        self.busy = False
        self.step = 0
        self.unit = context.membership.usual_weight
        self._roll = context.roll(len(parameters))
        self._thread = thread
        self._finite: bool | None = None
        self._told: Future[Called] = Future()

    @property
    def roll_bytes(self) -> int:
        """What this rank sends to tell who sent."""
        return self._roll.bytes_sent

    def tell(self, used: Sequence[bool], *, present: bool, weight: float) -> None:
        """Starts to tell which parameters have a gradient here, and whether training goes on."""
        own = torch.tensor(used, dtype=torch.float32)
        self._told = self._thread.submit(self._roll.bring(own, present=present, weight=weight))

    def told(self) -> Called:
        """Waits for the sums over ranks of what they told."""
        return self._told.result()

    def note(self) -> None:
        """Takes in who was there. At the same step on all ranks, which may hear at different ones."""
        self._roll.note(self.told())

    def note_if_heard(self) -> None:
        """Takes in the same of a round that is dropped, where it was heard; others learn of it from this worker."""
        if self.busy and self._told.done() and not self._told.cancelled() and self._told.exception() is None:
            self.note()

    def start(
        self, gradients: Mapping[str, Tensor | None], now: Round, step: int, weight: float, unit: float
    ) -> None:
        """Sends gradients on their way, multiplied by this worker's weight, in units of the usual one."""
        self.busy, self.step, self._finite = True, step, None
        rescale(self.exchange.averagers, self.unit / unit)
        self.unit = unit
        self.exchange.begin(now)
        for number, bucket in enumerate(self.exchange.buckets):
            for name, view in bucket.views.items():
                gradient = gradients[name]
                view.zero_() if gradient is None else view.copy_(gradient)
            if weight != 1.0:
                bucket.flat.mul_(weight)
            self.exchange.ready(number)
        self.exchange.end()

    def arrive(self) -> bool:
        """Waits until the means are here; returns whether they are finite."""
        if self._finite is None:
            self._finite = self.exchange.wait()
        return self._finite

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the means that are here or on their way, which are waited for."""
        state: dict[str, Any] = {"busy": self.busy, "step": self.step, "unit": self.unit}
        if self.busy:
            told = self.told()
            state |= {"finite": self.arrive(), "told": [told.present, told.weight, told.own.clone()]}
            state["means"] = {n: v.clone() for b in self.exchange.buckets for n, v in b.views.items()}
        state["memory"] = memory(self.exchange.averagers)  # what the arrival left over, too
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned; what is under way is waited for and dropped."""
        if self.busy:
            self.arrive()
            self.told()
        load_memory(self.exchange.averagers, state["memory"])
        self.busy, self.step = state["busy"], state["step"]
        self.unit = state.get("unit", self.unit)
        if self.busy:
            self._finite = state["finite"]
            present, weight, own = state["told"]
            self._told = Future()
            self._told.set_result(Called(present=present, weight=weight, leaving=0, own=own))
            for bucket in self.exchange.buckets:
                bucket.pack({name: state["means"][name] for name in bucket.views})

    def drop(self) -> None:
        """Waits for what is under way, and forgets it."""
        if self.busy:
            self.arrive()
            self.told()
            self.busy = False

    def close(self) -> None:
        """Ends threads and gives connections back."""
        self.exchange.close()
        self._roll.close()


class DelayedEngine(BaseEngine):
    """Step t is made with the mean gradient of step t − s; until then `p.grad` is the worker's own.

    As many turns as steps of delay follow one another. A step takes the means out of the oldest turn and puts its own
    gradients there. A worker whose data is over goes on sending zeros until all are done. Where a member is lost, the
    gradients under way are dropped on all alike; a mean that anybody has stepped with counts for all.
    """

    keeps_replicas_equal = True
    survives = True

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        assert isinstance(plan.sync, Delayed | Acco), plan.sync
        _require_plain(plan, context)
        self._context, self._parameters = context, parameters
        self._thread = Background("tightwire-roll")
        self._turns = [Turn(parameters, plan, context, self._thread) for _ in range(plan.sync.steps)]
        layouts = [bucket.layout for bucket in self._turns[0].exchange.buckets]
        # Two, by turns: a gradient that the user did not drop is in the one stepped with last.
        self._means = [[Bucket(layout) for layout in layouts] for _ in range(2)]
        self._own_sizes = of_own_size(parameters, plan, context)
        self._plan = plan
        self._is_stepping = False  # the user's step is still to come
        self._unstepped: Mapping[str, Tensor | None] | None = None  # means that were taken
        self._number = 0  # rounds, counted on from a checkpoint
        self._steps = 0
        self._ages: Counter[int] = Counter()

    def weigh(self, weight: float) -> None:  # noqa: D102
        self._context.membership.weigh(weight)

    def before_step(self) -> None:  # noqa: D102
        self._steps += 1
        self._is_stepping = True
        turn = self._oldest
        means = self._unstepped = self._arrived(self._take(turn) if turn.busy else None)
        gradients = {name: p.grad for name, p in self._parameters.items()}
        weight = self._context.membership.take_share()
        turn.tell([g is not None for g in gradients.values()], present=True, weight=weight)
        self.planned_bytes += turn.roll_bytes
        self._start(turn, gradients, weight)
        for name, parameter in self._parameters.items():
            parameter.grad = None if means is None else means[name]
        self._is_stepping, self._unstepped = False, None

    def _arrived(self, means: Mapping[str, Tensor | None] | None) -> Mapping[str, Tensor | None] | None:
        """Returns what is stepped with, when these means arrived."""
        return means

    def flush(self) -> None:  # noqa: D102
        trained, unused = self._steps, [False] * len(self._parameters)
        while True:
            turn = self._oldest
            means = self._unstepped = self._take(turn) if turn.busy else None
            turn.tell(unused, present=False, weight=0.0)
            self.planned_bytes += turn.roll_bytes
            if turn.told().present == 0:
                break
            self._unstepped = None
            self._start(turn, dict.fromkeys(self._parameters))
            self._context.membership.settle()
        self._unstepped = None
        if means is not None:
            self._step_with(means)
        self._drain()
        transport, parameters = self._context.transport, self._parameters.values()
        self.planned_bytes += self._context.membership.even_out(transport, parameters, trained)

    def consensus(self) -> Mapping[str, Tensor]:
        """Steps with what is on its way."""
        self._drain()
        return {}

    def staleness(self) -> Mapping[int, int]:  # noqa: D102
        return self._ages

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        turns = [turn.state_dict() for turn in self._turns]
        return {"rounds": self._number, "steps": self._steps, "turns": turns, "memory": turns[0]["memory"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        for turn, kept in zip(self._turns, state["turns"], strict=True):
            turn.load_state_dict(kept)
        self._number, self._steps = state["rounds"], state["steps"]

    def load_merged(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Takes up means on their way too, as if as many workers had sent them as there are now."""
        state = merged(states)
        share = self._context.transport.size / len(states)
        for turn in state["turns"]:
            if turn["busy"]:
                present, weight, own = turn["told"]
                turn["told"] = [round(present * share), weight * share, own]
        self.load_state_dict(state)

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        for turn in self._turns:
            turn.drop()
        self._number = rounds

    def position(self) -> Position:
        """Has agreed on the rounds whose means it took; those under way are dropped, on all alike."""
        under_way = sum(turn.busy for turn in self._turns)
        return Position(
            agreed=self._number - under_way,
            begun=self._number,
            is_stepped=not self._is_stepping,
            is_dropped=True,
        )

    def salvage(self) -> dict[str, Any]:
        """Steps with the means that were taken; the user's step under way changes nothing any more."""
        if self._unstepped is not None:
            self._step_with(self._unstepped)
            self._unstepped = None
        if self._is_stepping:
            for parameter in self._parameters.values():
                parameter.grad = None
            self._is_stepping = False
        for turn in self._turns:
            turn.note_if_heard()
        units = [turn.unit for turn in self._turns]
        return {"memory": [memory(turn.exchange.averagers) for turn in self._turns], "units": units}

    def catch_up(  # noqa: D102
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        kept = [
            shared_part(mine, others) for mine, others in zip(own["memory"], theirs["memory"], strict=True)
        ]
        return {**own, "memory": kept}, frozenset(self._parameters)

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:  # noqa: D102
        for turn, kept, unit in zip(self._turns, state["memory"], state["units"], strict=True):
            averagers = turn.exchange.averagers
            load_memory(averagers, fitting(averagers, kept, what=str(self._plan)))
            turn.unit = unit
        self._number = agreed

    def close(self) -> None:  # noqa: D102
        self._thread.close()
        for turn in self._turns:
            turn.close()

    @property
    def _oldest(self) -> Turn:
        return self._turns[self._number % len(self._turns)]

    def _start(self, turn: Turn, gradients: Mapping[str, Tensor | None], weight: float = 1.0) -> None:
        self._number += 1
        self.rounds += 1
        self.planned_bytes += turn.exchange.bytes_in(self._number)
        now = Round(number=self._number, seed=self._context.seed + self._number)
        turn.start(gradients, now, self._steps, weight, self._context.membership.usual_weight)

    def _take(self, turn: Turn) -> dict[str, Tensor | None]:
        """Takes the means out; None for a parameter that nobody used, and for all if one is not finite."""
        start_s = time.perf_counter()
        finite, told = turn.arrive(), turn.told()
        turn.busy = False
        turn.note()
        self.exposed_s = time.perf_counter() - start_s
        self._context.membership.note_weight(told)
        if not finite:
            self.skipped += 1
            return dict.fromkeys(self._parameters)
        self._ages[self._steps - turn.step] += 1
        self._means.reverse()
        share = self._context.transport.size / told.weight if told.weight else 1.0
        for mean, bucket in zip(self._means[0], turn.exchange.buckets, strict=True):
            torch.mul(bucket.flat, share, out=mean.flat)
        views = {name: view for mean in self._means[0] for name, view in mean.views.items()}
        if share != 1.0 and self._own_sizes:
            arrived = {name: view for bucket in turn.exchange.buckets for name, view in bucket.views.items()}
            for name in self._own_sizes:
                views[name].copy_(arrived[name])
        return {
            name: views[name] if count > 0.5 or bool(views[name].any()) else None
            for name, count in zip(self._parameters, told.own.tolist(), strict=True)
        }

    def _drain(self) -> None:
        """Steps with all means that are here or on their way, oldest first."""
        for number in range(len(self._turns)):
            turn = self._turns[(self._number + number) % len(self._turns)]
            if turn.busy:
                self._step_with(self._take(turn))

    def _step_with(self, means: Mapping[str, Tensor | None]) -> None:
        own = {name: p.grad for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.grad = means[name]
        self._context.optimizers.step_silently()
        for name, parameter in self._parameters.items():
            parameter.grad = own[name]


def _require_plain(plan: Plan, context: RunContext) -> None:
    """Makes sure that steps can be made with other gradients than those just computed.

    Raises:
        AttachError: LBFGS, or a GradScaler.
    """
    if any(isinstance(member, LBFGS) for member in context.optimizers.members):
        raise AttachError(
            f"LBFGS computes gradients within its step, and {plan.sync} replaces them by earlier ones before it; "
            "choose another optimizer, or bsp."
        )
    if context.awaits_means:
        raise AttachError(
            f"a GradScaler drops steps whose own gradients overflow, and under {plan.sync} each worker would drop "
            "steps of its own; train in bfloat16 without a scaler, or choose bsp."
        )
