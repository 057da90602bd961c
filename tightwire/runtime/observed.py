"""What the first rounds of a run showed, for schedules that decide by measured times."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tightwire.runtime.exchange import Exchange
from tightwire.schedule import Wire

SMALLEST_LATENCY_S = 1e-5
LEAST_SPREAD = 1.5  # the largest over the smallest size of which α and β are told apart
# Of which the first is not looked at: it allocates and connects.
WATCHED_ROUNDS = 4


@dataclass
class Observed:
    """Ready times and the cost of averaging: rank 0's, so that every rank decides alike.

    Attributes:
        ready_s: when backward produces each gradient, from its first one, by name; empty before anything was seen.
        wire: what averaging a buffer costs; None before anything was seen.
        proposal: what this rank measured, in the form of `state`; None where it measured nothing yet.
    """

    ready_s: dict[str, float] = field(default_factory=dict)
    wire: Wire | None = None
    proposal: list[Any] | None = None

    def state(self) -> list[Any] | None:
        """Returns what must survive a checkpoint: buckets cut otherwise round otherwise."""
        return None if self.wire is None else [self.ready_s, self.wire.latency_s, self.wire.bytes_per_s]

    def take(self, state: list[Any] | None) -> bool:
        """Takes up what `state` returned; returns whether it is news."""
        if state is None or state == self.state():
            return False
        self.ready_s, self.wire = dict(state[0]), Wire(latency_s=state[1], bytes_per_s=state[2])
        return True

    def propose(self, ready_s: Mapping[str, float], wire: Wire) -> None:
        """Holds this rank's measurements ready for the next meeting, where all take those of one rank."""
        self.proposal = [dict(ready_s), wire.latency_s, wire.bytes_per_s]


class GradientWatch:
    """Looks at the first rounds of an exchange.

    A piece's time is the median over rounds: one may include waiting for a rank that is late, or, as lanes side by
    side share the line, less than its share of it.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._rounds = 0
        self._took_s: list[list[float]] = []
        self._ready_s: dict[str, list[float]] = {}

    def note(self, ready_s: Mapping[str, float]) -> bool:
        """Takes in a round that is over; returns whether that is enough, the same on every rank."""
        self._rounds += 1
        if self._rounds > 1:
            self._took_s.append(shares(self._exchange.spans_s))
            for name, seconds in ready_s.items():
                self._ready_s.setdefault(name, []).append(seconds)
        return self._rounds == WATCHED_ROUNDS

    def ready_s(self) -> dict[str, float]:
        """Returns when gradients were there, medians."""
        return {name: statistics.median(seen) for name, seen in self._ready_s.items()}

    def wire(self) -> Wire:
        """Returns what averaging costs."""
        sizes = [averager.bucket.layout.num_bytes for averager in self._exchange.averagers]
        return fit(sizes, [statistics.median(took_s) for took_s in zip(*self._took_s, strict=True)])


def shares(spans_s: Sequence[tuple[float, float]]) -> list[float]:
    """Returns how long each of several pieces kept the line: those under way at once share it evenly.

    >>> shares([(0.0, 4.0), (2.0, 4.0), (5.0, 6.0)])
    [3.0, 1.0, 1.0]
    """
    ends = sorted({moment for span in spans_s for moment in span})
    took_s = [0.0] * len(spans_s)
    for start, stop in itertools.pairwise(ends):
        under_way = [i for i, (begin, end) in enumerate(spans_s) if begin <= start and stop <= end]
        for i in under_way:
            took_s[i] += (stop - start) / len(under_way)
    return took_s


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> Wire:
    """Fits α + β·bytes to what transfers took, by least squares on relative errors; α ≥ 10 µs, β > 0.

    Sizes that hardly differ do not tell α from β: then all of it is β, for a line that is busy is not waited for.

    >>> wire = fit([1000, 2000, 4000], [0.002, 0.003, 0.005])
    >>> round(wire.latency_s, 6), round(wire.bytes_per_s)
    (0.001, 1000000)
    """
    points = [(n, s) for n, s in zip(sizes, seconds, strict=True) if n > 0 and s > 0.0]
    if not points:
        return Wire(latency_s=SMALLEST_LATENCY_S, bytes_per_s=1e12)
    weights = [1.0 / s**2 for _, s in points]
    total = sum(weights)
    mean_n = sum(w * n for w, (n, _) in zip(weights, points, strict=True)) / total
    mean_s = sum(w * s for w, (_, s) in zip(weights, points, strict=True)) / total
    spread = sum(w * (n - mean_n) ** 2 for w, (n, _) in zip(weights, points, strict=True))
    differ = max(n for n, _ in points) >= LEAST_SPREAD * min(n for n, _ in points)
    slope = (
        sum(w * (n - mean_n) * (s - mean_s) for w, (n, s) in zip(weights, points, strict=True)) / spread
        if differ
        else mean_s / mean_n
    )
    latency_s = max(SMALLEST_LATENCY_S, mean_s - slope * mean_n)
    rest_s = max(mean_s - latency_s, 1e-3 * mean_s)
    return Wire(latency_s=latency_s, bytes_per_s=mean_n / rest_s)
