"""Training steps in virtual time, with the runtime's own scheduler.

Two things happen side by side. Compute goes through milestones (a bucket is filled; backward ends; a forward pass needs
a bucket), at a speed that transfers may lower where they share its cores. Pieces go over the wire, in the order and in
the lanes of the scheduler; their latencies overlap between lanes, their bytes share one line, and their codecs one
processor, first come, first served, so that pieces arrive in the order in which they start. The loop looks at whichever
comes next, a milestone or an arrival.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tightwire.schedule import Agenda, Scheduler
from tightwire.simulate.cost import BucketCost

# However busy the communication thread is, its host's scheduler leaves compute this much at least.
MOST_STOLEN = 0.9
# Overlapping steps are simulated until they repeat: the first has no forward to wait, the second fills the line.
STEPS_TO_REPEAT = 4

Action = Callable[[], None]


class PieceTransfer(NamedTuple):  # thousands are made for one prediction
    """One piece's way over the wire, in seconds from the start of its step's backward."""

    piece: int
    bucket: int
    start_s: float
    end_s: float


@dataclass
class Timeline:
    """What happened when, in seconds from the start of a backward pass.

    Attributes:
        ready_s: when each bucket was filled.
        backward_end_s: when backward was over.
        moves: in the order in which pieces arrived.
        control_end_s: when the small message that counts users was back.
        period_s: from one step's end to the next one's, where the next forward overlaps; else 0.
    """

    ready_s: dict[int, float] = field(default_factory=dict)
    backward_end_s: float = 0.0
    moves: list[PieceTransfer] = field(default_factory=list)
    control_end_s: float = 0.0
    period_s: float = 0.0

    @property
    def end_s(self) -> float:
        """When all means have arrived."""
        last_s = self.moves[-1].end_s if self.moves else 0.0  # they are in order of arrival
        return max(self.backward_end_s, self.control_end_s, last_s)


@dataclass(frozen=True, kw_only=True)
class StepSimulation:
    """Forward and backward passes and the exchanges that overlap with them.

    Attributes:
        forward_s: length of a forward pass, undisturbed.
        backward_s: of a backward pass.
        optimizer_s: of the optimizer, where it runs bucket by bucket within the next forward.
        ready_s: when each bucket is filled, from the start of backward, undisturbed.
        agenda: the pieces, their order, lanes and credit.
        costs: of each piece.
        control_s: of the message after backward.
        overlaps_forward: whether the next forward begins before all means are there.
    """

    forward_s: float = 0.0
    backward_s: float
    optimizer_s: float = 0.0
    ready_s: Sequence[float]
    agenda: Agenda
    costs: Sequence[BucketCost]
    control_s: float
    overlaps_forward: bool = False

    def simulate(self, scheduler: Scheduler) -> Timeline:
        """Lets them happen; `scheduler` must be one for this agenda."""
        return _Simulation(self, scheduler).run()


class _Simulation:
    def __init__(self, steps: StepSimulation, scheduler: Scheduler) -> None:
        self.steps, self.scheduler = steps, scheduler
        self.wire = _Wire(steps, scheduler)
        self.timeline = Timeline()
        self.now_s, self.begun_s = 0.0, 0.0
        self.ends_s: list[float] = []
        # Compute: milestones in seconds of undisturbed work, how much is done since when, and at which speed.
        self.milestones: Sequence[tuple[float, Action]] = ()
        self.reached, self.done_s, self.since_s, self.speed = 0, 0.0, 0.0, 1.0
        self.awaited: tuple[int, Action] | None = None

    def run(self) -> Timeline:
        self.begin_backward()
        wire = self.wire
        while True:
            milestone_s, arrival_s = self.milestone_s(), wire.next_arrival_s()
            if math.inf == milestone_s == arrival_s:
                break
            if arrival_s <= milestone_s:
                self.now_s = arrival_s
                wire.arrive()
                wire.start_ready(arrival_s)
                self.on_arrival()
            else:
                self.now_s = milestone_s
                self.done_s, action = self.milestones[self.reached]
                self.since_s = milestone_s
                self.reached += 1
                action()
            self.set_speed()
        begun_s = self.begun_s
        self.timeline.moves = [PieceTransfer(p, b, s - begun_s, e - begun_s) for p, b, s, e in wire.moves]
        if len(self.ends_s) > 1:
            self.timeline.period_s = self.ends_s[-1] - self.ends_s[-2]
        return self.timeline

    def milestone_s(self) -> float:
        if self.reached == len(self.milestones):
            return math.inf
        left_s = max(0.0, self.milestones[self.reached][0] - self.done_s)
        return self.since_s + left_s / self.speed

    def set_speed(self) -> None:
        """Lets compute go on at what the communication thread leaves it."""
        speed = self.wire.speed_left()
        if speed != self.speed:
            self.done_s += (self.now_s - self.since_s) * self.speed
            self.since_s, self.speed = self.now_s, speed

    def compute(self, milestones: Sequence[tuple[float, Action]]) -> None:
        self.milestones, self.reached = milestones, 0
        self.done_s, self.since_s = 0.0, self.now_s

    def begin_backward(self) -> None:
        self.begun_s = self.now_s
        self.timeline.ready_s.clear()
        self.wire.begin()
        ready_s, end_s = self.steps.ready_s, self.steps.backward_s
        in_order = sorted(range(len(ready_s)), key=ready_s.__getitem__)
        milestones = [(min(ready_s[b], end_s), lambda b=b: self.fill(b)) for b in in_order]
        self.compute([*milestones, (end_s, self.end_backward)])

    def fill(self, bucket: int) -> None:
        self.timeline.ready_s[bucket] = self.now_s - self.begun_s
        self.scheduler.ready(bucket)
        self.wire.start_ready(self.now_s)

    def end_backward(self) -> None:
        self.timeline.backward_end_s = self.now_s - self.begun_s
        self.timeline.control_end_s = self.timeline.backward_end_s + self.steps.control_s
        self.scheduler.end()
        self.wire.start_ready(self.now_s)
        self.ends_s.append(self.now_s)
        if self.steps.overlaps_forward and len(self.ends_s) < STEPS_TO_REPEAT and not self.repeats():
            self.forward(self.needs(), 0.0)

    def repeats(self) -> bool:
        """Whether the last step took as long as the one before it."""
        if len(self.ends_s) < 3:
            return False
        before_s, last_s = (b - a for a, b in itertools.pairwise(self.ends_s[-3:]))
        return math.isclose(before_s, last_s, rel_tol=1e-9)

    def needs(self) -> deque[tuple[float, int]]:
        """Returns when in a forward pass each bucket is needed: backward's order, reversed."""
        length_s = self.steps.forward_s + self.steps.optimizer_s
        backward_s = self.steps.backward_s or 1.0
        needs = ((length_s * (1 - min(1.0, r / backward_s)), b) for b, r in enumerate(self.steps.ready_s))
        return deque(sorted(needs))

    def forward(self, needs: deque[tuple[float, int]], done_s: float) -> None:
        """Computes up to the next need that is not there yet, waits for it, and so on to the end."""
        while needs and needs[0][1] in self.wire.arrived and needs[0][0] <= done_s:
            needs.popleft()
        if not needs:
            end_s = self.steps.forward_s + self.steps.optimizer_s
            self.compute([(max(0.0, end_s - done_s), self.begin_backward)])
            return
        at_s, bucket = needs.popleft()
        self.compute(
            [(max(0.0, at_s - done_s), lambda: self.wait(bucket, lambda: self.forward(needs, at_s)))]
        )

    def wait(self, bucket: int, then: Action) -> None:
        if bucket in self.wire.arrived:
            then()
        else:
            self.awaited = bucket, then

    def on_arrival(self) -> None:
        if self.awaited and self.awaited[0] in self.wire.arrived:
            _, then = self.awaited
            self.awaited = None
            then()


class _Wire:
    """A worker's lanes to the others: starts pieces in the scheduler's order, as lanes are free."""

    def __init__(self, steps: StepSimulation, scheduler: Scheduler) -> None:
        self.moves: list[tuple[int, int, float, float]] = []  # piece, bucket, start, end
        self.arrived: set[int] = set()
        self._scheduler, self._lanes = scheduler, steps.agenda.lanes
        self._buckets = [piece.bucket for piece in steps.agenda.pieces]
        self._latency_s = [cost.latency_s for cost in steps.costs]
        self._on_line_s = [cost.codec_s + cost.wire_s + cost.copy_s for cost in steps.costs]
        self._stolen = [cost.stolen_s / cost.seconds if cost.seconds else 0.0 for cost in steps.costs]
        self._steals = any(self._stolen)
        self._missing = [0] * (1 + max(self._buckets, default=-1))
        for bucket in self._buckets:
            self._missing[bucket] += 1
        self._left = list(self._missing)
        self._under_way: deque[tuple[float, int, float]] = (
            deque()
        )  # arrival, piece, start; in order of arrival
        self._started = 0
        self._in_lane = [0] * self._lanes
        self._line_free_s = 0.0

    def begin(self) -> None:
        """Begins a step: nothing is ready, nothing has arrived."""
        assert not self._under_way, self._under_way
        self._scheduler.begin()
        self.moves.clear()
        self.arrived.clear()
        self._left, self._started = list(self._missing), 0

    def next_arrival_s(self) -> float:
        """When the next piece arrives; infinity: none is under way."""
        return self._under_way[0][0] if self._under_way else math.inf

    def arrive(self) -> None:
        """Lets the next piece arrive."""
        end_s, piece, start_s = self._under_way.popleft()
        bucket = self._buckets[piece]
        self.moves.append((piece, bucket, start_s, end_s))
        self._in_lane[piece % self._lanes] -= 1
        self._scheduler.done(piece)
        self._left[bucket] -= 1
        if not self._left[bucket]:
            self.arrived.add(bucket)

    def start_ready(self, now_s: float) -> None:
        """Starts what can be started."""
        while self._lane_is_free() and (piece := self._scheduler.next()) is not None:
            self._started += 1
            on_line_s = max(now_s + self._latency_s[piece], self._line_free_s)
            self._line_free_s = on_line_s + self._on_line_s[piece]
            self._under_way.append((self._line_free_s, piece, now_s))
            self._in_lane[piece % self._lanes] += 1

    def speed_left(self) -> float:
        """Which share of its speed compute has beside what is under way."""
        if not self._steals:
            return 1.0
        return 1.0 - min(MOST_STOLEN, sum(self._stolen[piece] for _, piece, _ in self._under_way))

    def _lane_is_free(self) -> bool:
        return len(self._under_way) < self._lanes and not self._in_lane[self._started % self._lanes]
