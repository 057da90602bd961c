"""What a run did so far: times, counts, and what is logged of them."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from typing import Protocol

from tightwire.runtime.engines import Counts, Stepping

# Bounds the memory of a long run: times of the newest steps are kept.
MOST_STEPS = 10_000


class Writer(Protocol):
    """What is needed of a TensorBoard `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Notes a value."""


class Record:
    """Times steps and adds up what engines counted.

    Attributes:
        steps: made in this run.
        waited_s: how long this worker only waited for others.
        waited_s_by_worker: the same of every worker, as of the last meeting.
        steps_s: between the ends of steps, since the plan changed; the newest.
        exposed_s: of each of them, how long it only waited.
        usual_s: what a step took under the plan before; the median.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.waited_s = 0.0
        self.waited_s_by_worker: tuple[float, ...] = ()
        self.steps_s: deque[float] = deque(maxlen=MOST_STEPS)
        self.exposed_s: deque[float] = deque(maxlen=MOST_STEPS)
        self.usual_s = 0.0
        self._retired = Counts()
        self._end_s: float | None = None
        self._ages_logged: Counter[int] = Counter()

    def note_wait(self, exposed_s: float) -> None:
        """Takes in a step that is over, but for what happens between steps."""
        self.steps += 1
        self.exposed_s.append(exposed_s)
        self.waited_s += exposed_s
        if self._end_s is not None:
            self.steps_s.append(time.perf_counter() - self._end_s)

    def end_step(self) -> None:
        """Begins to time the next step."""
        self._end_s = time.perf_counter()

    def begin_plan(self, engine: Stepping) -> None:
        """Keeps the counts of an engine that is replaced; times begin anew."""
        self._retired += Counts.of(engine)
        if self.steps_s:
            self.usual_s = statistics.median(self.steps_s)
        self.steps_s.clear()
        self.exposed_s.clear()

    def counts(self, engine: Stepping) -> Counts:
        """Returns the counts of all engines so far."""
        return self._retired + Counts.of(engine)

    def log(self, writer: Writer, engine: Stepping, sent_bytes: int, step: int) -> None:
        """Writes what the step was like."""
        counts = self.counts(engine)
        scalars = {"rounds": counts.rounds, "sent_bytes": sent_bytes, "waited_s": self.exposed_s[-1]}
        if self.steps_s:
            scalars["step_s"] = self.steps_s[-1]
        if (staleness := self._staleness_since_logged(counts)) is not None:
            scalars["staleness"] = staleness
        for name, value in scalars.items():
            writer.add_scalar(f"tightwire/{name}", value, step)

    def _staleness_since_logged(self, counts: Counts) -> float | None:
        """Returns how old what was stepped with was, in the mean since the last call; None where nothing ever is."""
        seen = Counter(counts.staleness)
        new, self._ages_logged = seen - self._ages_logged, seen
        return sum(age * times for age, times in new.items()) / new.total() if new else None
