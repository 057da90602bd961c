"""One training step in virtual time, with the runtime's own scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tightwire.schedule import Scheduler
from tightwire.simulate.cost import BucketCost
from tightwire.simulate.events import Action, Clock, Work

# However busy the communication thread is, its host's scheduler leaves compute this much at least.
MOST_STOLEN = 0.9


@dataclass(frozen=True, kw_only=True)
class Move:
    """One bucket's way over the wire, in seconds from the start of the simulated time."""

    bucket: int
    start_s: float
    end_s: float


@dataclass
class Timeline:
    """What happened when.

    Attributes:
        ready_s: when each bucket was filled.
        backward_end_s: when backward was over.
        moves: in the order in which buckets moved.
        control_end_s: when the small message that counts users was back.
    """

    ready_s: dict[int, float] = field(default_factory=dict)
    backward_end_s: float = 0.0
    moves: list[Move] = field(default_factory=list)
    control_end_s: float = 0.0

    @property
    def end_s(self) -> float:
        """When all means have arrived."""
        return max(self.backward_end_s, self.control_end_s, *(move.end_s for move in self.moves), 0.0)


class Channel:
    """A worker's communication thread: moves one bucket at a time, in the scheduler's order.

    `on_change` is told the speed that is left for compute.
    """

    def __init__(
        self,
        clock: Clock,
        scheduler: Scheduler,
        costs: Sequence[BucketCost],
        on_change: Callable[[float], None],
    ) -> None:
        self.moves: list[Move] = []
        self._clock = clock
        self._scheduler = scheduler
        self._costs = costs
        self._on_change = on_change
        self._busy = False

    def poke(self) -> None:
        """Starts the next bucket, if there is one and none is under way."""
        if self._busy or (bucket := self._scheduler.next()) is None:
            return
        self._busy = True
        cost = self._costs[bucket]
        self._on_change(1.0 - min(MOST_STOLEN, cost.stolen_s / cost.seconds if cost.seconds else 0.0))
        start_s = self._clock.now_s
        self._clock.after(cost.seconds, lambda: self._arrive(bucket, start_s))

    def _arrive(self, bucket: int, start_s: float) -> None:
        self.moves.append(Move(bucket=bucket, start_s=start_s, end_s=self._clock.now_s))
        self._busy = False
        self.poke()
        if not self._busy:
            self._on_change(1.0)


@dataclass(frozen=True, kw_only=True)
class Backward:
    """A backward pass and the exchange that overlaps with it.

    Attributes:
        backward_s: its length, undisturbed.
        ready_s: when each bucket is filled, from its start, undisturbed.
        costs: of each bucket.
        control_s: of the message after backward.
    """

    backward_s: float
    ready_s: Sequence[float]
    costs: Sequence[BucketCost]
    control_s: float

    def simulate(self, scheduler: Scheduler) -> Timeline:
        """Lets it happen; `scheduler` must be one for as many buckets."""
        clock, timeline = Clock(), Timeline()
        scheduler.begin()

        def fill(bucket: int) -> Action:
            def filled() -> None:
                timeline.ready_s[bucket] = clock.now_s
                scheduler.ready(bucket)
                channel.poke()

            return filled

        def end() -> None:
            timeline.backward_end_s = clock.now_s
            scheduler.end()
            channel.poke()
            clock.after(self.control_s, control)

        def control() -> None:
            timeline.control_end_s = clock.now_s

        in_order = sorted(range(len(self.ready_s)), key=self.ready_s.__getitem__)
        milestones = [(min(self.ready_s[b], self.backward_s), fill(b)) for b in in_order]
        compute = Work(clock, [*milestones, (self.backward_s, end)])
        channel = Channel(
            clock,
            scheduler,
            self.costs,
            lambda speed: compute.set_speed(speed),
        )
        clock.run()
        timeline.moves = channel.moves
        return timeline
