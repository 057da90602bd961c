"""Mean parameters: workers step alone, and agree every so many steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.round import Round
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine, Position
from tightwire.runtime.engines.memory import (
    drop_unless_finite,
    fitting,
    load_memory,
    require_one_copy,
    shared_part,
)
from tightwire.runtime.engines.segments import Segment, build_segments
from tightwire.runtime.engines.states import States
from tightwire.runtime.membership import Called
from tightwire.runtime.pace import LengthByLoss
from tightwire.sync import Rounds


class ParameterEngine(BaseEngine):
    """Every so many steps, workers agree on the mean of their parameters (local methods).

    A round begins with one control message, by which workers that reached the end of their data before others go
    on taking part until all have; the mean is that of the others. A worker with a NaN or Inf in its gradients drops
    that step, lest its optimizer's state be lost, and spoils the round: all workers alike go back to where it began.
    """

    finished_follow = True
    skips_ahead = True

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        self._context, self._plan = context, plan
        assert isinstance(plan.sync, Rounds), plan.sync
        self._sync = plan.sync
        if plan.sync.optimizer_state != "averaged":
            instead = "write state=averaged where the policy has it, or choose bsp"
            require_one_copy(context.optimizers.members, str(plan.sync), instead)
        self._segments, self._inside = build_segments(parameters, plan, self._sync, context)
        self.survives = self.postpones = self._inside is None
        self._trained = tuple(parameters.values())
        policy, periods = self._sync.optimizer_state, self._sync.state_periods
        self._states = States(parameters, plan, context, policy, periods)
        self._spoiled = False
        self._clock = 0  # steps since all agreed last, at the same count on all ranks
        self._restarts = 0  # how often that was
        self._loss, self._losses = 0.0, 0
        self._is_weighed = False
        self._pace = LengthByLoss(self._sync)
        self._told = (0.0, 0)  # loss and losses of the round begun last
        self._next = 0  # the count of steps at which anything begins or lands
        self._look_ahead()

    @property
    def is_silent(self) -> bool:  # type: ignore[override]  # noqa: D102
        return self._clock + 1 < self._next

    def observe(self, *, loss: float | None = None, samples: float | None = None) -> None:  # noqa: D102
        if loss is not None and math.isfinite(loss):
            self._loss, self._losses = self._loss + loss, self._losses + 1
        self._add_samples(samples or 0.0)

    def weigh(self, weight: float) -> None:
        """Adds to this worker's weight in the round's mean."""
        if self._sync.elastic:
            super().weigh(weight)
        self._add_samples(weight)
        self._is_weighed = True

    def _add_samples(self, samples: float) -> None:
        for segment in self._all_segments():
            segment.samples += samples

    def require_leavable(self) -> None:  # noqa: D102
        if self._inside is not None:
            raise AttachError(
                f"under {self._sync} no worker leaves alone, for the others would no longer make whole nodes of "
                f"{self._inside.workers}; call run.finish(), which takes part in their rounds until all are done."
            )

    def before_step(self) -> None:  # noqa: D102
        self._spoiled |= drop_unless_finite(self._trained)

    def more_gradients(self) -> None:  # noqa: D102
        self.before_step()

    def after_step(self, step: int) -> None:  # noqa: D102
        self._clock += 1
        self.exposed_s = 0.0
        for segment in self._all_segments():
            segment.alone += 1
        if self._clock >= self._next:
            self._come_to_rounds()

    def _come_to_rounds(self) -> None:
        """Lands and begins what is due."""
        if self._context.membership.postpones:
            self._next = self._clock + 1
            return
        start_s = time.perf_counter()
        self._land_due()
        for segment in self._beginning():
            self._begin(segment, present=True)
        self._look_ahead()
        self.exposed_s = time.perf_counter() - start_s

    def flush(self) -> None:  # noqa: D102
        self._take_part_until_all_are_here()
        self._land_all()
        for segment in self._segments:
            mine = self._weight_in(segment, final=True)
            called = self._call(segment, mine, present=False)
            if called.weight > 0:
                segment.closes = True
                self._start(segment, mine, called)
                self._land(segment, waited=True)
        for segment in self._segments:
            segment.parameters.go_to_anchor()
        self._restart()

    def consensus(self) -> Mapping[str, Tensor] | None:
        """The outer model or the centre, where there is one; else the mean of where workers are."""
        self._land_all()
        if self._sync.outer.is_mean and self._context.outer is None and not self._sync.elastic:
            return None
        return self._agreed()

    def common(self) -> Mapping[str, Tensor]:  # noqa: D102
        return self._agreed()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        merged: dict[str, Any] = _merge(segment.parameters.state_dict() for segment in self._segments)
        return {
            **merged,
            "rounds": sum(segment.number for segment in self._segments),
            "clock": self._clock,
            "restarts": self._restarts,
            "spoiled": self._spoiled,
            "heard": [self._loss, self._losses],
            "weighed": self._is_weighed,
            "pace": self._pace.state_dict(),
            "segments": [segment.state_dict() for segment in self._all_segments()],
            "inside": self._inside.parameters.state_dict() if self._inside else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        if len(state["segments"]) != len(list(self._all_segments())):
            raise AttachError(
                "the checkpoint's model is cut into other fragments; load it under the schedule of its plan."
            )
        for segment in self._all_segments():
            segment.parameters.drop()
        averagers = [a for segment in self._segments for a in segment.parameters.exchange.averagers]
        load_memory(averagers, state["memory"])
        for segment, kept in zip(self._all_segments(), state["segments"], strict=True):
            segment.load_state_dict(kept)
        for segment in self._segments:
            segment.parameters.load_state_dict(state)
        if self._inside is not None:
            load_memory(self._inside.parameters.exchange.averagers, state["inside"]["memory"])
            self._inside.parameters.load_state_dict(state["inside"])
        self._clock, self._spoiled = state["clock"], state["spoiled"]
        self._restarts = state.get("restarts", 0)
        self._loss, self._losses = state["heard"][:2]
        self._is_weighed = state.get("weighed", False)
        self._pace.load_state_dict(state["pace"])
        self._look_ahead()

    def position(self) -> Position:
        """Has begun no round that could not be repeated: what a worker did since the last one is still there."""
        landed = sum(segment.landed for segment in self._segments)
        return Position(landed, landed)

    def salvage(self) -> dict[str, Any]:  # noqa: D102
        if any(segment.parameters.under_way for segment in self._segments):
            loss, losses = self._told
            self._loss, self._losses = self._loss + loss, self._losses + losses
        for segment in self._segments:
            segment.interrupt(self._clock)
        return self.state_dict()

    def outcome(self, salvaged: Mapping[str, Any]) -> Mapping[str, Tensor]:  # noqa: D102
        anchors: Mapping[str, Tensor] = salvaged["anchors"]
        return anchors

    def catch_up(  # noqa: D102
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        missed = [
            there if is_new or there["landed"] > here["landed"] else None
            for here, there in zip(own["segments"], theirs["segments"], strict=True)
        ]
        names = frozenset(
            name
            for segment, news in zip(self._segments, missed, strict=True)
            if news is not None
            for name in segment.parameters.agreed()
        )
        counts_anew = is_new or theirs["restarts"] > own["restarts"]  # all have ended together there
        caught_up = {
            **own,
            "memory": shared_part(own["memory"], theirs["memory"]),
            "pace": theirs["pace"],
            "segments": [
                here if news is None else {**news, "alone": 0, "samples": 0.0}
                for here, news in zip(
                    own["segments"], theirs["segments"] if counts_anew else missed, strict=True
                )
            ],
            "clock": theirs["clock"] if counts_anew else own["clock"],
            "restarts": theirs["restarts"] if counts_anew else own["restarts"],
        }
        for kind in ("anchors", "outer"):
            others = {name: kept for name, kept in own[kind].items() if name not in names}
            caught_up[kind] = others | {n: kept for n, kept in theirs[kind].items() if n in names}
        return caught_up, names

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:  # noqa: D102
        averagers = [a for segment in self._segments for a in segment.parameters.exchange.averagers]
        kept = fitting(averagers, state["memory"], what=str(self._plan))
        self.load_state_dict({**state, "memory": kept})

    def skip_ahead(self, steps: int) -> int:
        """Counts on to the next round at most, in which this worker counts nothing if it made no step before."""
        skipped = max(0, min(steps, min(segment.due for segment in self._all_segments()) - self._clock))
        self._clock += skipped
        return skipped

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Repeats the rounds that were interrupted, and begins others that are due.

        Who is within a round does not look whether members are gone: the others go without them only when they come to
        theirs, and then all would wait for the rest of this one's round.
        """
        if self._beginning():
            self._come_to_rounds()

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        for segment in self._all_segments():
            segment.parameters.drop()
        for segment in self._segments:
            segment.number = segment.landed = rounds // len(self._segments)
            segment.parameters.anchor_here()
        self._restart()

    def close(self) -> None:  # noqa: D102
        self._states.close()
        for segment in self._all_segments():
            segment.parameters.exchange.close()
            segment.roll.close()

    def _look_ahead(self) -> None:
        """Notes at which step anything begins or lands next."""
        times = [at for segment in self._all_segments() for at in (segment.due, segment.lands_at)]
        self._next = min((at for at in times if at > self._clock), default=self._clock + 1)

    def _all_segments(self) -> Iterable[Segment]:
        return (*self._segments, self._inside) if self._inside is not None else self._segments

    def _agreed(self) -> dict[str, Tensor]:
        return {
            name: anchor for segment in self._segments for name, anchor in segment.parameters.agreed().items()
        }

    def _beginning(self) -> list[Segment]:
        """Returns the segments whose rounds begin now, without those that another one covers.

        They begin in turn on every rank: of rounds that were put off, others may have begun some at an earlier step.
        """
        due = [segment for segment in self._all_segments() if segment.due <= self._clock]
        due.sort(key=lambda segment: segment.number)
        covered = {id(inner) for segment in due for inner in segment.covers}
        return [segment for segment in due if id(segment) not in covered]

    def _begin(self, segment: Segment, *, present: bool) -> bool:
        """Calls the roll, and starts a round of a segment if anybody's training goes on; returns whether it did."""
        mine = self._weight_in(segment)
        called = self._call(segment, mine, present=present)
        if called.present == 0:
            return False
        steps = segment.period if segment is self._inside else self._steps_after(segment, called)
        self._start(segment, mine, called)
        segment.due = max(segment.due, self._clock) + steps  # it may have been put off
        for inner in segment.covers:
            while inner.due <= self._clock:
                inner.due += inner.period
        if segment.late == 0:
            self._land(segment)
        return True

    def _weight_in(self, segment: Segment, *, final: bool = False) -> float:
        """Returns this worker's weight in a round; 0 if it changed nothing, or is not to count."""
        rank = self._context.transport.rank
        counts = segment.alone > 0 and (
            final or self._sync.takes_part(rank, segment.workers, self._seed(segment) + 1)
        )
        weighs = self._sync.weighs_samples or self._is_weighed
        weight = float(counts) * ((segment.samples or 1.0) if weighs else 1.0)
        if weight and segment.watch is not None:
            weight *= segment.watch.weigh(segment.parameters.distance())
        return weight

    def _call(self, segment: Segment, weight: float, *, present: bool) -> Called:
        self.planned_bytes += segment.roll.bytes_sent
        told = [] if segment.watch is None else segment.watch.told()
        own = torch.tensor([self._loss, float(self._losses), *told])
        leaving = self._context.membership.leaving
        called = segment.roll.call(own, present=present, weight=weight, leaving=leaving)
        if segment.watch is not None:
            segment.watch.learn(called.own[2:].tolist())
        return called

    def _steps_after(self, segment: Segment, called: Called) -> int:
        """Returns the length of the round after the one that begins now."""
        if not self._sync.follows_loss:
            return self._sync.steps_of(segment.number + 2)
        loss, losses, *_ = called.own.tolist()
        rates = [float(group["lr"]) for group in self._context.optimizers.param_groups if "lr" in group]
        return self._pace.after(loss, losses, max(rates, default=0.0))

    def _start(self, segment: Segment, mine: float, called: Called) -> None:
        segment.number += 1
        segment.counts = mine > 0
        segment.alone, segment.present, segment.lands_at = 0, called.weight, self._clock + segment.late
        share = mine * segment.workers / called.weight if called.weight else 0.0
        self.rounds += 1
        self._told = (self._loss, self._losses)
        self._loss, self._losses = 0.0, 0
        segment.sent_samples, segment.samples = segment.samples, 0.0
        self.planned_bytes += segment.parameters.exchange.bytes_in(segment.number)
        now = Round(number=segment.number, seed=self._seed(segment))
        spoiled = self._spoiled and mine > 0
        nobody_counts = segment.watch is not None and called.weight == 0  # all are odd
        segment.parameters.start(now, share=share, spoiled=spoiled or nobody_counts)
        self._spoiled = self._spoiled and not spoiled
        if segment is not self._inside:
            self.planned_bytes += self._states.treat(now, share)

    def _land(self, segment: Segment, *, waited: bool = False) -> None:
        finite = segment.parameters.land(segment.present, waited=waited)
        self.skipped += not finite
        segment.lands_at = 0
        segment.landed += 1
        for inner in segment.covers:
            inner.alone, inner.samples = 0, 0.0
            inner.parameters.anchor_here()

    def _land_due(self) -> None:
        for segment in self._segments:
            if segment.parameters.under_way and segment.lands_at <= self._clock:
                self._land(segment)

    def _land_all(self) -> None:
        for segment in self._segments:
            if segment.parameters.under_way:
                self._land(segment)

    def _take_part_until_all_are_here(self) -> None:
        """Follows the others' rounds, counting nothing once what was done alone is handed in."""
        done: set[int] = set()  # rolls all of whose workers are here
        while id(self._segments[0].roll) not in done:
            self.follow(done)
            self._context.membership.settle()

    def follow(self, done: set[int] | None = None) -> None:
        """Takes part in the next rounds of ranks whose training goes on, if there are any.

        Args:
            done: rolls all of whose workers are finished; others are added.
        """
        done = set() if done is None else done
        open_segments = [segment for segment in self._all_segments() if id(segment.roll) not in done]
        self._clock = max(self._clock, min(segment.due for segment in open_segments))
        self._land_due()
        for segment in self._beginning():
            if id(segment.roll) not in done and not self._begin(segment, present=False):
                done.add(id(segment.roll))

    def _restart(self) -> None:
        self._clock = 0
        self._restarts += 1
        for segment in self._all_segments():
            segment.restart()
        if self._inside is not None:
            self._inside.parameters.anchor_here()
        self._look_ahead()

    def _seed(self, segment: Segment) -> int:
        """Of the round begun last: the same on every rank that shares in it."""
        numbers = [segment.number] if segment is self._inside else [other.number for other in self._segments]
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
