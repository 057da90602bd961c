"""Mean parameters: workers step alone, and agree every so many steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.round import Round
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine
from tightwire.runtime.engines.lines import Line, build_lines
from tightwire.runtime.engines.memory import have_finite_gradients, load_memory
from tightwire.runtime.engines.states import States
from tightwire.runtime.engines.votes import Ballot, Votes
from tightwire.sync import Rounds


class ParameterEngine(BaseEngine):
    """Every so many steps, workers agree on the mean of their parameters (local methods).

    A round begins with one control message, by which workers that reached the end of their data before others go
    on taking part until all have; the mean is that of the others. A worker with a NaN or Inf in its gradients drops
    that step, lest its optimizer's state be lost, and spoils the round: all workers alike go back to where it began.
    """

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        self._context = context
        assert isinstance(plan.sync, Rounds), plan.sync
        self._sync = plan.sync
        self._lines, self._inside = build_lines(parameters, plan, self._sync, context)
        self._trained = tuple(parameters.values())
        self._states = States(parameters, plan, context, self._sync.optimizer_state)
        self.planned_bytes = 0
        self.rounds = 0
        self.skipped = 0
        self.exposed_s = 0.0
        self._spoiled = False
        self._leaving = self._meeting = False
        self._clock = 0  # steps since all agreed last, at the same count on all ranks
        self._loss, self._losses, self._samples = 0.0, 0, 0.0
        self._first_loss: float | None = None

    def accumulating(self, on: bool) -> None:  # noqa: D102
        pass

    def observe(self, *, loss: float | None = None, samples: float | None = None) -> None:  # noqa: D102
        if loss is not None and math.isfinite(loss):
            self._loss, self._losses = self._loss + loss, self._losses + 1
        self._samples += samples or 0.0

    def leave(self) -> None:  # noqa: D102
        if self._inside is not None:
            raise AttachError(
                f"under {self._sync} no worker leaves alone, for the others would no longer make whole nodes of "
                f"{self._inside.workers}; call run.finish(), which takes part in their rounds until all are done."
            )
        self._leaving = True

    def requests_flush(self) -> bool:  # noqa: D102
        return self._meeting

    def before_step(self) -> None:  # noqa: D102
        if not have_finite_gradients(self._trained):
            self._spoiled = True
            for parameter in self._trained:
                parameter.grad = None

    def after_step(self, step: int) -> None:  # noqa: D102
        self._clock += 1
        self.exposed_s = 0.0
        for line in self._all_lines():
            line.alone += 1
        if any(self._clock in (line.due, line.lands_at) for line in self._all_lines()):
            start_s = time.perf_counter()
            self._land_due()
            for line in self._beginning():
                self._begin(line, present=True)
            self.exposed_s = time.perf_counter() - start_s

    def flush(self) -> None:  # noqa: D102
        self._take_part_until_all_are_here()
        self._land_all()
        for line in self._lines:
            mine = self._vote(line, present=False, final=True)
            votes = self._sum(line.ballot, mine)
            if votes.weight > 0:
                self._start(line, mine, votes)
                self._land(line, waited=True)
        for line in self._lines:
            line.parameters.go_to_anchor()
        self._restart()
        self._meeting = False

    def consensus(self) -> Mapping[str, Tensor] | None:
        """The outer model or the centre, where there is one; else the mean of where workers are."""
        self._land_all()
        if self._sync.outer.is_mean and self._context.outer is None and not self._sync.elastic:
            return None
        return self._agreed()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        merged: dict[str, Any] = _merge(line.parameters.state_dict() for line in self._lines)
        return {
            **merged,
            "rounds": sum(line.number for line in self._lines),
            "clock": self._clock,
            "spoiled": self._spoiled,
            "heard": [self._loss, self._losses, self._samples],
            "first_loss": self._first_loss,
            "lines": [line.state_dict() for line in self._all_lines()],
            "inside": self._inside.parameters.state_dict() if self._inside else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        if len(state["lines"]) != len(list(self._all_lines())):
            raise AttachError(
                "the checkpoint's model is cut into other fragments; load it under the schedule of its plan."
            )
        averagers = [a for line in self._lines for a in line.parameters.exchange.averagers]
        load_memory(averagers, state["memory"])
        for line, kept in zip(self._all_lines(), state["lines"], strict=True):
            line.load_state_dict(kept)
        for line in self._lines:
            line.parameters.load_state_dict(state)
        if self._inside is not None:
            load_memory(self._inside.parameters.exchange.averagers, state["inside"]["memory"])
            self._inside.parameters.load_state_dict(state["inside"])
        self._clock, self._spoiled = state["clock"], state["spoiled"]
        self._loss, self._losses, self._samples = state["heard"]
        self._first_loss = state["first_loss"]

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        for line in self._lines:
            line.number = rounds // len(self._lines)

    def close(self) -> None:  # noqa: D102
        self._states.close()
        for line in self._all_lines():
            line.parameters.exchange.close()

    def _all_lines(self) -> Iterable[Line]:
        return (*self._lines, self._inside) if self._inside is not None else self._lines

    def _agreed(self) -> dict[str, Tensor]:
        return {name: anchor for line in self._lines for name, anchor in line.parameters.agreed().items()}

    def _beginning(self) -> list[Line]:
        """Returns the lines whose rounds begin now, without those that another one covers."""
        due = [line for line in self._all_lines() if line.due <= self._clock]
        covered = {id(inner) for line in due for inner in line.covers}
        return [line for line in due if id(line) not in covered]

    def _begin(self, line: Line, *, present: bool) -> bool:
        """Votes, and starts a round of a line if anybody's training goes on; returns whether it did."""
        mine = self._vote(line, present=present)
        votes = self._sum(line.ballot, mine)
        if round(votes.present) == 0:
            return False
        steps = line.period if line is self._inside else self._steps_after(line, votes)
        self._start(line, mine, votes)
        line.due += steps
        for inner in line.covers:
            while inner.due <= self._clock:
                inner.due += inner.period
        if line.late == 0:
            self._land(line)
        return True

    def _vote(self, line: Line, *, present: bool, final: bool = False) -> Votes:
        counts = line.alone > 0 and (
            final or self._sync.takes_part(self._context.transport.rank, line.workers, self._seed(line) + 1)
        )
        weight = (self._samples or 1.0) if self._sync.weighs_samples else 1.0
        return Votes(
            present=float(present),
            weight=weight * counts,
            loss=self._loss,
            losses=float(self._losses),
            leaving=float(self._leaving),
        )

    def _sum(self, ballot: Ballot, mine: Votes) -> Votes:
        self.planned_bytes += ballot.bytes_sent
        votes = ballot.sum(mine)
        self._meeting = self._meeting or votes.leaving > 0.5
        return votes

    def _steps_after(self, line: Line, votes: Votes) -> int:
        """Returns the length of the round after the one that begins now."""
        if not self._sync.follows_loss:
            return self._sync.steps_of(line.number + 2)
        if votes.losses < 0.5:
            raise AttachError(
                f"{self._sync} follows the loss, and no worker reported one in this round: call "
                "run.report_loss(loss) in every step, before optimizer.step()."
            )
        mean = votes.loss / votes.losses
        self._first_loss = mean if self._first_loss is None else self._first_loss
        return self._sync.steps_after(mean / self._first_loss if self._first_loss > 0 else 1.0)

    def _start(self, line: Line, mine: Votes, votes: Votes) -> None:
        line.number += 1
        line.alone, line.present, line.lands_at = 0, votes.weight, self._clock + line.late
        share = mine.weight * line.workers / votes.weight if votes.weight else 0.0
        self.rounds += 1
        self._loss, self._losses, self._samples = 0.0, 0, 0.0
        self.planned_bytes += line.parameters.exchange.bytes_in(line.number)
        now = Round(number=line.number, seed=self._seed(line))
        spoiled = self._spoiled and mine.weight > 0
        line.parameters.start(now, share=share, spoiled=spoiled)
        self._spoiled = self._spoiled and not spoiled
        if line is not self._inside:
            self.planned_bytes += self._states.treat(now, share)

    def _land(self, line: Line, *, waited: bool = False) -> None:
        line.lands_at = 0
        self.skipped += not line.parameters.land(line.present, waited=waited)
        for inner in line.covers:
            inner.alone = 0
            inner.parameters.anchor_here()

    def _land_due(self) -> None:
        for line in self._lines:
            if line.parameters.under_way and line.lands_at <= self._clock:
                self._land(line)

    def _land_all(self) -> None:
        for line in self._lines:
            if line.parameters.under_way:
                self._land(line)

    def _take_part_until_all_are_here(self) -> None:
        """Follows the others' rounds, counting nothing once what was done alone is handed in."""
        done: set[int] = set()  # ballots all of whose workers are here
        while id(self._lines[0].ballot) not in done:
            open_lines = [line for line in self._all_lines() if id(line.ballot) not in done]
            self._clock = max(self._clock, min(line.due for line in open_lines))
            self._land_due()
            for line in self._beginning():
                if id(line.ballot) not in done and not self._begin(line, present=False):
                    done.add(id(line.ballot))

    def _restart(self) -> None:
        self._clock = 0
        for line in self._all_lines():
            line.restart()
        if self._inside is not None:
            self._inside.parameters.anchor_here()

    def _seed(self, line: Line) -> int:
        """Of the round begun last: the same on every rank that shares in it."""
        numbers = [line.number] if line is self._inside else [other.number for other in self._lines]
        return self._context.seed + sum(numbers)


def _merge(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts the states of fragments together, which have no names in common."""
    first, *others = states
    merged = {key: dict(first[key]) for key in ("memory", "anchors", "outer")}
    pending: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value
                               for key, value in first["pending"].items()}  # fmt: skip
    for state in others:
        for key in merged:
            merged[key] |= state[key]
        pending["means"] |= state["pending"]["means"]
        pending["sent"] |= state["pending"]["sent"]
        pending["finite"] = pending["finite"] and state["pending"]["finite"]
    return merged | {"pending": pending}
