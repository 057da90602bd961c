"""Training steps in virtual time, with the runtime's own scheduler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tightwire.schedule import Agenda, Scheduler
from tightwire.simulate.cost import BucketCost
from tightwire.simulate.events import Action, Computation, VirtualClock

# However busy the communication thread is, its host's scheduler leaves compute this much at least.
MOST_STOLEN = 0.9
# Overlapping steps are simulated until they repeat: the first has no forward to wait, the second fills the line.
STEPS_TO_REPEAT = 4


@dataclass(frozen=True, kw_only=True)
class PieceTransfer:
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
        return max(self.backward_end_s, self.control_end_s, *(move.end_s for move in self.moves), 0.0)


class Lanes:
    """A worker's lanes to the others: starts pieces in the scheduler's order, as lanes are free.

    Latencies of pieces on different lanes overlap. Their bytes share one line, and their codecs one processor, first
    come, first served.
    """

    def __init__(
        self,
        clock: VirtualClock,
        scheduler: Scheduler,
        agenda: Agenda,
        costs: Sequence[BucketCost],
        on_change: Callable[[], None],
    ) -> None:
        self.moves: list[PieceTransfer] = []
        self.speed_left = 1.0  # of compute, beside what is under way
        self.arrived: set[int] = set()
        self._clock, self._scheduler, self._agenda, self._costs = clock, scheduler, agenda, costs
        self._on_change = on_change
        self._missing = _pieces_of_buckets(agenda)
        self._left = list(self._missing)
        self._under_way: set[int] = set()
        self._started = 0
        self._line_free_s = 0.0

    def begin(self) -> None:
        """Begins a step: nothing is ready, nothing has arrived."""
        assert not self._under_way, self._under_way
        self._scheduler.begin()
        self.arrived.clear()
        self._left, self._started = list(self._missing), 0

    def start_ready(self) -> None:
        """Starts what can be started."""
        while self._lane_is_free() and (piece := self._scheduler.next()) is not None:
            self._start(piece)

    def _lane_is_free(self) -> bool:
        lanes = self._agenda.lanes
        return all(piece % lanes != self._started % lanes for piece in self._under_way)

    def _start(self, piece: int) -> None:
        cost, start_s = self._costs[piece], self._clock.now_s
        self._started += 1
        self._under_way.add(piece)
        on_line_s = max(start_s + cost.latency_s, self._line_free_s)
        self._line_free_s = on_line_s + cost.codec_s + cost.wire_s
        self._clock.after(self._line_free_s - start_s, lambda: self._arrive(piece, start_s))
        self._share()

    def _arrive(self, piece: int, start_s: float) -> None:
        bucket = self._agenda.pieces[piece].bucket
        self.moves.append(PieceTransfer(piece=piece, bucket=bucket, start_s=start_s, end_s=self._clock.now_s))
        self._under_way.remove(piece)
        self._scheduler.done(piece)
        self._left[bucket] -= 1
        if not self._left[bucket]:
            self.arrived.add(bucket)
        self.start_ready()
        self._share()

    def _share(self) -> None:
        """Finds what is left of compute's speed, and tells that something changed."""
        costs = (self._costs[piece] for piece in self._under_way)
        stolen = sum(cost.stolen_s / cost.seconds for cost in costs if cost.seconds)
        self.speed_left = 1.0 - min(MOST_STOLEN, stolen)
        self._on_change()


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
        self.clock, self.timeline = VirtualClock(), Timeline()
        self.channel = Lanes(self.clock, scheduler, steps.agenda, steps.costs, self._on_change)
        self.work: Computation | None = None
        self.waits_for: tuple[int, Callable[[], None]] | None = None
        self.begun_s = 0.0
        self.ends_s: list[float] = []

    def run(self) -> Timeline:
        self._backward()
        self.clock.run()
        self.timeline.moves = [
            dataclasses.replace(move, start_s=move.start_s - self.begun_s, end_s=move.end_s - self.begun_s)
            for move in self.channel.moves
        ]
        if len(self.ends_s) > 1:
            self.timeline.period_s = self.ends_s[-1] - self.ends_s[-2]
        return self.timeline

    def _backward(self) -> None:
        self.begun_s = self.clock.now_s
        self.channel.moves.clear()
        self.timeline.ready_s.clear()
        self.channel.begin()
        in_order = sorted(range(len(self.steps.ready_s)), key=self.steps.ready_s.__getitem__)
        milestones = [(min(self.steps.ready_s[b], self.steps.backward_s), self._fill(b)) for b in in_order]
        self._compute([*milestones, (self.steps.backward_s, self._end_backward)])

    def _fill(self, bucket: int) -> Action:
        def filled() -> None:
            self.timeline.ready_s[bucket] = self.clock.now_s - self.begun_s
            self.scheduler.ready(bucket)
            self.channel.start_ready()

        return filled

    def _end_backward(self) -> None:
        self.work = None
        now_s = self.clock.now_s
        self.timeline.backward_end_s = now_s - self.begun_s
        self.scheduler.end()
        self.channel.start_ready()
        self.clock.after(self.steps.control_s, self._control)
        self.ends_s.append(now_s)
        if self.steps.overlaps_forward and len(self.ends_s) < STEPS_TO_REPEAT:
            self._forward(self._needs(), 0.0)

    def _control(self) -> None:
        self.timeline.control_end_s = self.clock.now_s - self.begun_s

    def _needs(self) -> list[tuple[float, int]]:
        """Returns when in a forward pass each bucket is needed: backward's order, reversed."""
        length_s = self.steps.forward_s + self.steps.optimizer_s
        backward_s = self.steps.backward_s or 1.0
        needs = ((length_s * (1 - min(1.0, r / backward_s)), b) for b, r in enumerate(self.steps.ready_s))
        return sorted(needs)

    def _forward(self, needs: Sequence[tuple[float, int]], done_s: float) -> None:
        """Computes up to the next need, waits for it, and so on to the end."""
        if not needs:
            self._compute([(self.steps.forward_s + self.steps.optimizer_s - done_s, self._backward)])
            return
        (at_s, bucket), *later = needs
        self._compute(
            [(max(0.0, at_s - done_s), lambda: self._await(bucket, lambda: self._forward(later, at_s)))]
        )

    def _await(self, bucket: int, then: Callable[[], None]) -> None:
        self.work = None
        self.waits_for = (bucket, then)
        self._on_change()

    def _compute(self, milestones: Sequence[tuple[float, Action]]) -> None:
        self.work = Computation(self.clock, milestones)
        self.work.set_speed(self.channel.speed_left)

    def _on_change(self) -> None:
        if self.waits_for and self.waits_for[0] in self.channel.arrived:
            _, then = self.waits_for
            self.waits_for = None
            then()
        elif self.work is not None:
            self.work.set_speed(self.channel.speed_left)


def _pieces_of_buckets(agenda: Agenda) -> list[int]:
    """Returns how many pieces each bucket has."""
    counts = [0] * (1 + max((piece.bucket for piece in agenda.pieces), default=-1))
    for piece in agenda.pieces:
        counts[piece.bucket] += 1
    return counts
