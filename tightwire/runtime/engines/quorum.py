"""Mean parameters without the slow: a round ends with a quorum, and who comes late is in the next one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.round import Round
from tightwire.buckets import Bucket
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.attendance import Attendance
from tightwire.runtime.context import RunContext
from tightwire.runtime.deputy import Deputy
from tightwire.runtime.engines.engine import BaseEngine, Position
from tightwire.runtime.engines.memory import (
    drop_unless_finite,
    fitting,
    load_memory,
    require_one_copy,
    shared_part,
)
from tightwire.runtime.engines.segments import build_segments
from tightwire.runtime.membership import Called
from tightwire.runtime.parameters import Parameters
from tightwire.runtime.reading import MOST, count_of, readable
from tightwire.sync import Rounds


@dataclass(frozen=True, kw_only=True)
class Handed:
    """A change that waits to enter a round.

    Attributes:
        steps: behind it.
        weight: in the mean.
        spoiled: whether a gradient in it was not finite: no mean with it will be.
    """

    steps: int
    weight: float
    spoiled: bool


class QuorumEngine(BaseEngine):
    """Every so many steps workers agree on the mean of the parameters of those that are there.

    A worker's *deputy*, a thread, takes part in every round; the worker itself hands it a copy of its parameters when
    its H steps are made. A round begins when a quorum has handed in and the grace is over (`Attendance`); each deputy
    then brings what its worker handed in, or zeros of no weight. The roll that begins a round adds the weights up, so
    that who is in needs no other agreement, and the anchors are the same on all ranks after every round.

    A worker that handed in before a round waits for its mean. One that a round has gone past takes the new anchors
    between two steps, adds what it has changed to them, and does not wait when it hands that in: it goes on until
    the next round takes it, and from there counts its steps as the others do.

    Where members are elastic and change, a worker keeps what it changed and no round has taken. A round that reached
    one of them counts on all; who lacks it takes its anchors, and forgets what it had handed in for it.

    Memory: three times the parameters beside the exchange (anchors, what was handed in, where counting began).
    """

    survives = True
    postpones = True
    finished_follow = True

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        assert isinstance(plan.sync, Rounds), plan.sync
        assert plan.sync.quorum_of is not None, plan.sync
        if context.groups:
            raise AttachError(f"{plan.sync} ends rounds without slow workers, which `groups` would wait for.")
        require_one_copy(
            context.optimizers.members, str(plan.sync), "leave out quorum and write state=averaged"
        )
        self._context, self._plan, self._sync, self._trained = context, plan, plan.sync, parameters
        # What the deputy averages: a worker's parameters at the time when it handed them in.
        self._shadow = {name: Parameter(p.detach().clone()) for name, p in parameters.items()}
        (self._segment,), _ = build_segments(self._shadow, plan, plan.sync, context)
        self._since = [Bucket(anchor.layout) for anchor in self._agreed.anchors]
        self._attendance = Attendance(
            context.transport, context.membership, plan.sync.quorum_of, str(plan.sync)
        )
        self._handed: Handed | None = None
        self._is_brought = False  # whether it is in the round under way
        self._landed_mine = 0  # the last round that this worker's change was in
        self._seen = 0  # rounds that had landed when this worker took the anchors last
        self._clock = self._alone = self._due = (
            0  # steps made, since it handed in, and after which it does next
        )
        self._is_behind = self._spoiled = self._is_weighed = False
        self._samples = 0.0
        self._ages: Counter[int] = Counter()
        self._count_anew()
        self._deputy = Deputy("tightwire-deputy", self._attendance.may_begin, self._hold_round)
        if not context.membership.is_elastic:  # else once what others have is taken up
            self._deputy.go_on()

    # What the worker does

    @property
    def is_silent(self) -> bool:  # type: ignore[override]  # noqa: D102
        return self._clock + 1 < self._due and self._seen == self._segment.landed

    def before_step(self) -> None:  # noqa: D102
        if not self._deputy.is_on:
            self._deputy.go_on()
        self._spoiled |= drop_unless_finite(tuple(self._trained.values()))

    def more_gradients(self) -> None:  # noqa: D102
        self.before_step()

    def observe(self, *, loss: float | None = None, samples: float | None = None) -> None:  # noqa: D102
        self._samples += samples or 0.0

    def weigh(self, weight: float) -> None:
        """Adds to this worker's weight in the round's mean."""
        self._samples += weight
        self._is_weighed = True

    def require_leavable(self) -> None:
        """Lets any worker leave: deputies meet before the next round."""

    def staleness(self) -> Mapping[int, int]:
        """Returns how many of this worker's changes were in a round that began so many rounds after they did."""
        return self._ages

    def after_step(self, step: int) -> None:  # noqa: D102
        self._clock += 1
        self._alone += 1
        self.exposed_s = 0.0
        if self._clock < self._due and self._seen == self._segment.landed and self._deputy.is_sound:
            return
        if self._context.membership.postpones:
            return
        self._deputy.require_sound()
        start_s = time.perf_counter()
        with self._deputy.lock:
            if self._clock >= self._due:
                self._come()
            elif not self._deputy.is_busy:  # else after the next step
                self._take_anchors()
        self.exposed_s = time.perf_counter() - start_s

    def _come(self) -> None:
        """Hands in what was changed, and waits for the mean unless the others are ahead. The lock is held."""
        self._wait_for_landing()
        self._take_anchors()
        if self._clock < self._due:  # what was handed in before has landed just now
            return
        if self._handed is None:
            self._hand_in()
            if self._is_behind:
                self._due = self._clock + self._sync.steps_per_round
                return
        number = self._segment.landed + 1
        self._wait(lambda: self._segment.landed >= number)
        self._take_anchors()

    def _take_anchors(self) -> None:
        """Goes on from the newest anchors, with what was changed since the last count added. The lock is held."""
        if self._seen == self._segment.landed:
            return
        with torch.no_grad():
            for anchor, since in zip(self._agreed.anchors, self._since, strict=True):
                for name, begun in since.views.items():
                    self._trained[name].sub_(begun).add_(anchor.views[name])
                since.flat.copy_(anchor.flat)
        is_in = self._landed_mine > self._seen
        if is_in:
            self._due = self._clock + self._sync.steps_per_round
        self._is_behind = self._segment.landed > (self._landed_mine if is_in else self._seen)
        self._seen = self._segment.landed

    def _hand_in(self) -> None:
        """Gives the deputy the present parameters; what is done from now on counts for another round."""
        weighs = self._sync.weighs_samples or self._is_weighed
        weight = (self._samples or 1.0) if weighs else self._alone / self._sync.steps_per_round
        self._handed = Handed(steps=self._alone, weight=weight, spoiled=self._spoiled)
        with torch.no_grad():
            for since in self._since:
                since.pack({name: self._trained[name].detach() for name in since.views})
                since.unpack({name: self._shadow[name].detach() for name in since.views})
        self._alone, self._samples, self._spoiled = 0, 0.0, False
        self._attendance.arrive(self._segment.landed + 1, is_behind=self._is_behind)
        self._deputy.wake()

    def _take_back(self) -> None:
        """Counts what was handed in, and no round has taken, with what was changed since. No round is under way."""
        if (handed := self._handed) is None:
            return
        for anchor, since in zip(self._agreed.anchors, self._since, strict=True):
            since.flat.copy_(anchor.flat)
        self._alone += handed.steps
        self._samples += handed.weight if self._is_weighed or self._sync.weighs_samples else 0.0
        self._spoiled |= handed.spoiled
        self._handed, self._due, self._is_brought = None, self._clock, False

    # What its deputy does

    @property
    def _agreed(self) -> Parameters:
        return self._segment.parameters

    def _hold_round(self) -> bool:
        """Holds a round; returns whether there will be another: somebody trains on. On the deputy's thread."""
        with self._deputy.lock:
            handed, trains = self._handed, not self._attendance.rests
        called = self._call(handed, present=trains)
        if called.present == 0:
            return False
        self._run_round(handed, called)
        return True

    def _call(self, handed: Handed | None, *, present: bool) -> Called:
        roll, leaving = self._segment.roll, self._context.membership.leaving
        self.planned_bytes += roll.bytes_sent
        weight = handed.weight if handed is not None else 0.0
        return roll.call(present=present, weight=weight, leaving=leaving, compares=False)

    def _run_round(self, handed: Handed | None, called: Called) -> None:
        """Averages, moves the anchors, and counts the round."""
        segment = self._segment
        with self._deputy.lock, torch.no_grad():
            if self._deputy.has_ended():
                return
            segment.number += 1
            self.rounds += 1
            self._is_brought = handed is not None
            self.planned_bytes += segment.parameters.exchange.bytes_in(segment.number)
            now = Round(number=segment.number, seed=self._context.seed + segment.number)
            mine = handed.weight if handed is not None else 0.0
            share = mine * segment.workers / called.weight if called.weight else 0.0
            spoiled = handed is not None and handed.spoiled
            segment.parameters.start(now, share=share, spoiled=spoiled)
        segment.parameters.arrive()
        with self._deputy.lock:
            if self._deputy.has_ended():
                return
            finite = segment.parameters.land(called.weight, waited=True)
            self.skipped += not finite
            segment.landed += 1
            self._attendance.note_round(segment.landed)
            if handed is not None:
                self._ages[segment.landed - 1 - self._landed_mine] += 1
                self._landed_mine, self._handed, self._is_brought = segment.landed, None, False

    # Where all meet

    def _rest(self) -> bool:
        """Takes part in others' rounds until all rest for the same thing, and nothing is under way.

        Returns:
            Whether all are here. Else others are past what this worker comes to, as a newcomer that began behind it
            may be, and it goes on without them; they rest on.
        """
        comes_at = self._context.membership.comes_at
        mine = MOST - 1 if comes_at is None else comes_at
        while True:
            self._deputy.go_on()
            with self._deputy.lock:
                self._attendance.rest()
                self._deputy.wake()
                self._wait(lambda: not self._deputy.is_on)
                self._take_anchors()
                self._take_back()
                self._attendance.begin_anew(self._segment.landed)
            told = readable(self._context.transport.inner.exchange(mine.to_bytes(8, "little")), count_of)
            if mine < max(told):
                self._deputy.go_on()
                return False
            if min(told) == mine:
                return True

    def flush(self) -> None:
        """Makes replicas equal: what every worker has changed is in the last mean."""
        with self._deputy.lock:
            self._wait_for_landing()
            self._take_anchors()
            if self._handed is None and self._alone:
                self._hand_in()
        self._rest()
        if self._alone:
            with self._deputy.lock:
                self._hand_in()
        called = self._call(self._handed, present=False)
        if called.weight > 0:
            self._run_round(self._handed, called)
        self._agreed.go_to_anchor()
        with torch.no_grad():
            for name, anchor in self._agreed.agreed().items():
                self._trained[name].copy_(anchor)
        self._restart()
        self._deputy.go_on()

    def assemble(self) -> bool:
        """Rounds stop until all have come, or some who are past it. Every worker."""
        return self._rest()

    def consensus(self) -> Mapping[str, Tensor] | None:
        """The outer model, where there is one; else the mean of where workers are. Every worker, once assembled."""
        plain = self._sync.outer.is_mean and self._context.outer is None
        agreed = None if plain else {name: a.clone() for name, a in self._agreed.agreed().items()}
        self._deputy.go_on()
        return agreed

    def common(self) -> Mapping[str, Tensor]:
        """Returns the anchors."""
        with self._deputy.lock:
            return {name: anchor.clone() for name, anchor in self._agreed.agreed().items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns what must survive. Every worker: rounds stop until all have come."""
        self._rest()
        state = self._state()
        self._deputy.go_on()
        return state

    def state_after_meeting(self) -> dict[str, Any]:
        """Returns the same, for nobody has handed in anything since. Local."""
        return self._state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned. Every worker."""
        self._rest()
        self._resume(state)
        self._attendance.begin_anew(self._segment.landed)
        self._deputy.go_on()

    def _state(self) -> dict[str, Any]:
        return {
            **self._agreed.state_dict(),
            "rounds": self._segment.number,
            "landed": self._segment.landed,
            "seen": self._landed_mine,
            "clock": self._clock,
            "due": self._due,
            "behind": self._is_behind,
            **self._done_alone(),
        }

    def _done_alone(self) -> dict[str, Any]:
        return {
            "alone": self._alone,
            "spoiled": self._spoiled,
            "samples": [self._samples, self._is_weighed],
        }

    def _resume(self, state: Mapping[str, Any]) -> None:
        load_memory(self._agreed.exchange.averagers, state["memory"])
        self._agreed.load_state_dict(state)
        self._segment.number, self._segment.landed = state["rounds"], state["landed"]
        self._count_anew()
        self._landed_mine = state["seen"]
        self._clock, self._due, self._alone = state["clock"], state["due"], state["alone"]
        self._is_behind, self._spoiled = state["behind"], state["spoiled"]
        self._samples, self._is_weighed = state["samples"]

    # Where members change

    def position(self) -> Position:
        """Has begun no round that could not be repeated. What is under way lands here no more."""
        self._deputy.end()
        return Position(self._segment.landed, self._segment.landed)

    def salvage(self) -> dict[str, Any]:
        """Takes back what no round has taken; says what of it was not yet in the one that was under way."""
        with self._deputy.lock:
            if self._agreed.under_way:
                self._agreed.abandon()
            self._segment.number = self._segment.landed
            self._take_anchors()
            brought = self._is_brought
            since = {name: view.clone() for bucket in self._since for name, view in bucket.views.items()}
            later = self._done_alone()
            self._take_back()
            return self._state() | {"later": {"since": since, **later} if brought else {}}

    def handed(self, salvaged: Mapping[str, Any]) -> dict[str, Any]:  # noqa: D102
        return {**salvaged, "later": {}}

    def outcome(self, salvaged: Mapping[str, Any]) -> Mapping[str, Tensor]:  # noqa: D102
        anchors: Mapping[str, Tensor] = salvaged["anchors"]
        return anchors

    @torch.no_grad()
    def catch_up(
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Goes on from the source's anchors, with what was done since those that it has, or since it handed in."""
        if not is_new and theirs["landed"] <= own["landed"]:
            return dict(own), frozenset()
        kept = {key: theirs[key] for key in ("anchors", "outer", "pending", "rounds", "landed")}
        kept["memory"] = shared_part(own["memory"], theirs["memory"])
        later = dict(own["later"])
        since = later.pop("since", own["anchors"])
        if not is_new:
            kept["change"] = {name: p.detach() - since[name] for name, p in self._trained.items()}
            kept["behind"] = not later
        if is_new or later:
            kept |= {"seen": theirs["landed"], "due": own["clock"] + self._sync.steps_per_round, **later}
        return {**own, **kept}, frozenset(self._trained)

    @torch.no_grad()
    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:  # noqa: D102
        memory = fitting(self._agreed.exchange.averagers, state["memory"], what=str(self._plan))
        self._resume({**state, "memory": memory})
        self._attendance.count_from(self._segment.landed)
        anchors = self._agreed.agreed()
        for name, change in state.get("change", {}).items():
            self._trained[name].copy_(anchors[name] + change)

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Takes part in rounds from now on; what was interrupted is handed in again after the next step."""
        self._deputy.go_on()

    def resume_at(self, rounds: int) -> None:
        """Counts on from a checkpoint's rounds, from the present parameters. Every worker."""
        self._rest()
        with torch.no_grad():
            for name, shadow in self._shadow.items():
                shadow.copy_(self._trained[name])
        self._agreed.anchor_here()
        self._segment.number = self._segment.landed = rounds
        self._restart()
        self._deputy.go_on()

    def close(self) -> None:  # noqa: D102
        self._deputy.close()
        self._agreed.exchange.close()
        self._segment.roll.close()

    def _restart(self) -> None:
        """Counts steps from 0, on all alike."""
        self._count_anew()
        self._attendance.begin_anew(self._segment.landed)

    def _count_anew(self) -> None:
        """Counts steps from 0, at the anchors: all agree, and nothing is handed in."""
        for anchor, since in zip(self._agreed.anchors, self._since, strict=True):
            since.flat.copy_(anchor.flat)
        self._seen = self._landed_mine = self._segment.landed
        self._clock = self._alone = 0
        self._due = self._sync.steps_per_round
        self._is_behind = self._spoiled = False
        self._samples, self._handed, self._is_brought = 0.0, None, False

    def _wait_for_landing(self) -> None:
        self._wait(lambda: not self._deputy.is_busy)

    def _wait(self, until: Callable[[], bool]) -> None:
        """Waits, with the lock held, and blames who must come for it and does not."""
        transport = self._context.transport
        self._deputy.wait(until, self._attendance.missing, transport, "to hand in its change")
