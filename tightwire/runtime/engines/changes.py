"""Changes to servers: workers step alone, and servers step with what they changed, whenever it comes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.server.nesterov import DelayedNesterov
from tightwire.plan import Plan
from tightwire.runtime.checkpoint import merged
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine, Position
from tightwire.runtime.engines.memory import drop_unless_finite
from tightwire.runtime.engines.server import ServerEngine
from tightwire.runtime.step import Optimizers
from tightwire.sync import AsyncDiLoCo

MICROSECONDS = 1e6
MOST_MICROSECONDS = 2**32 - 1


class ChangeEngine(BaseEngine):
    """A worker steps with its own optimizer, sends x_start − x_end in place of a gradient, and goes on from the answer.

    What carries the change to the servers and brings their parameters back is a `ServerEngine`, whose optimizer is the
    outer one. A step with a NaN or Inf in its gradients is dropped here, before the optimizer sees it.

    Where members are elastic and change, a worker keeps what it changed since it sent last, and goes on with that from
    the servers' parameters; a change under way counts in the shards that had taken it.
    """

    survives = True
    calls_rolls = False
    flush_is_collective = False  # servers stay on, and workers may have died

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        assert isinstance(plan.sync, AsyncDiLoCo), plan.sync
        self._sync, self._trained = plan.sync, parameters
        self._transport, self._membership = context.transport, context.membership
        outer = DelayedNesterov(
            parameters.values(),
            lr=plan.sync.outer_lr,
            momentum=plan.sync.outer_momentum,
            delay=1,
            activation=plan.sync.activation,
        )
        self._server = ServerEngine(
            parameters, plan, dataclasses.replace(context, optimizers=Optimizers([outer]))
        )
        self._workers = self._server.workers
        among = plan.sync.fitted(len(self._workers)) if self._membership.is_elastic else plan.sync
        # Servers are told with every change.
        outer.param_groups[0] |= {"delay": len(self._workers), "activation": among.activation}
        self._is_sending = False
        self._interrupted: dict[str, Any] | None = None  # until servers are in place
        self._start = {name: p.detach().clone() for name, p in parameters.items()}
        self._alone, self._due = 0, plan.sync.steps_per_round
        self._dropped = 0
        self._began_s = time.perf_counter()

    @property
    def planned_bytes(self) -> int:  # type: ignore[override]  # noqa: D102
        return self._server.planned_bytes

    @property
    def rounds(self) -> int:  # type: ignore[override]  # noqa: D102
        return self._server.rounds

    @property
    def skipped(self) -> int:  # type: ignore[override]
        """Steps and changes that were not finite."""
        return self._server.skipped + self._dropped

    @property
    def is_server(self) -> bool:  # type: ignore[override]  # noqa: D102
        return self._server.is_server

    @property
    def is_silent(self) -> bool:  # type: ignore[override]  # noqa: D102
        return self._alone + 1 < self._due

    def staleness(self) -> Mapping[int, int]:
        """Returns how many changes were so many updates of others old when they were applied."""
        return self._server.staleness()

    def before_step(self) -> None:  # noqa: D102
        if self.is_server:
            self._server.before_step()  # says what a server is for
        self._dropped += drop_unless_finite(tuple(self._trained.values()))

    def more_gradients(self) -> None:  # noqa: D102
        self.before_step()

    def after_step(self, step: int) -> None:  # noqa: D102
        self._alone += 1
        self.exposed_s = 0.0
        if self._alone >= self._due:
            self._send()

    def flush(self) -> None:
        """Sends what was changed since, and takes the parameters that all end with."""
        if self._alone and not self.is_server:
            self._send()
        self._server.flush()
        self._go_on_with({})

    def consensus(self) -> Mapping[str, Tensor]:
        """The servers' parameters, when all workers have come; what was changed since stays to be sent."""
        change = self._change()
        self._server.flush()
        self._go_on_with(change)
        return {name: start.clone() for name, start in self._start.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns this rank's part of a checkpoint. Every worker, unless the engine is closed."""
        change = self._change()
        server = self._server.state_dict()
        self._go_on_with(change)
        return {
            "server": server,
            "rounds": server["rounds"],
            "memory": server["memory"],
            "change": {name: part.clone() for name, part in change.items()},
            "alone": self._alone,
            "due": self._due,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned. Every worker."""
        self._server.load_state_dict(state["server"])
        self._take_up(state)

    def load_merged(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Takes up all shards, and the mean of what workers had still to send. Every worker."""
        self._server.load_merged([state["server"] for state in states])
        self._take_up(merged([{key: state[key] for key in ("change", "alone", "due")} for state in states]))

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._server.resume_at(rounds)
        self._go_on_with({})

    def position(self) -> Position:  # noqa: D102
        return self._server.position()

    @torch.no_grad()
    def salvage(self) -> dict[str, Any]:
        """Keeps apart what is still to be sent, and goes back to where this worker began it."""
        if self._interrupted is None:
            change = {} if self._is_sending else self._change()
            alone = 0 if self._is_sending else self._alone
            self._interrupted = {"change": change, "alone": alone, "due": self._due}
            for name, parameter in self._trained.items():
                parameter.copy_(self._start[name])
        return {"server": self._server.salvage(), **self._interrupted}

    def handed(self, salvaged: Mapping[str, Any]) -> dict[str, Any]:  # noqa: D102
        return self._server.handed(salvaged["server"])

    def catch_up(
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Counts on; values come from servers."""
        server, names = self._server.catch_up(own["server"], theirs, is_new=is_new)
        return {**own, "server": server}, names

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:  # noqa: D102
        self._server.take_up(state["server"], agreed)
        self._interrupted = {key: state[key] for key in ("change", "alone", "due")}

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Goes on from the servers' parameters, with what was changed before. Every member; blocks."""
        self._server.go_on(position, is_lost=is_lost)
        if self._interrupted is not None:
            kept, self._interrupted = self._interrupted, None
            self._take_up(kept)
        else:
            self._go_on_with({})

    def close(self) -> None:  # noqa: D102
        self._server.close()

    def _take_up(self, state: Mapping[str, Any]) -> None:
        self._go_on_with(state["change"])
        self._alone, self._due = state["alone"], state["due"]

    @torch.no_grad()
    def _send(self) -> None:
        """Sends the change, and goes on from what the servers have made of it."""
        computing_s = time.perf_counter() - self._began_s
        kept = {name: p.grad for name, p in self._trained.items()}
        for name, parameter in self._trained.items():
            parameter.grad = self._start[name] - parameter
        self._is_sending = True
        try:
            self._server.before_step()
            self._server.after_step(0)
        finally:
            for name, parameter in self._trained.items():
                parameter.grad = kept[name]
        self._is_sending = False
        self.exposed_s = self._server.exposed_s
        steps = self._alone
        self._go_on_with({})
        if self._sync.dynamic:
            self._due = self._steps_by_speed(computing_s / steps)

    def _change(self) -> dict[str, Tensor]:
        """Returns x_end − x_start."""
        return {name: p.detach() - self._start[name] for name, p in self._trained.items()}

    @torch.no_grad()
    def _go_on_with(self, change: Mapping[str, Tensor]) -> None:
        """Begins at the present parameters, which are the servers', with what is still to be sent added."""
        for name, parameter in self._trained.items():
            self._start[name].copy_(parameter)
            if name in change:
                parameter.add_(change[name].to(parameter.device))
        if not change:
            self._alone = 0
        self._began_s = time.perf_counter()

    def _steps_by_speed(self, step_s: float) -> int:
        """Returns ⌊H · v_mine / v_fastest⌋, at least 1, and tells the others v_mine.

        Steps are timed between exchanges, and told beside all messages: what is known of others may be a round old.
        """
        marked = (self._membership.meetings + 1) % 2**30 << 32
        mine = max(1, min(round(step_s * MICROSECONDS), MOST_MICROSECONDS))
        self._transport.announce(marked + mine)
        told = [self._transport.announced(rank) for rank in self._workers if rank != self._transport.rank]
        others = [mark - marked for mark in told if mark >> 32 == marked >> 32]
        return max(1, int(self._sync.steps_per_round * min([mine, *others]) / mine))
