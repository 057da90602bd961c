"""When pieces were under way, and for how long that kept the line."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

KEPT = 16


@dataclass
class RoundTimes:
    """For how long the rounds of an exchange kept the line.

    Attributes:
        count: of rounds so far.
        latest_s: of the latest, the last one last.
    """

    count: int = 0
    latest_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def note(self, spans_s: Sequence[tuple[float, float]]) -> None:
        """Takes in when the pieces of a round were under way."""
        self.count += 1
        self.latest_s.append(line_s(spans_s))

    def since(self, count: int) -> list[float]:
        """Returns those of the rounds after so many, as far as they are kept."""
        return list(self.latest_s)[-(self.count - count) :] if self.count > count else []


def line_s(spans_s: Sequence[tuple[float, float]]) -> float:
    """Returns for how long at least one of several pieces was under way.

    >>> line_s([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total_s, until_s = 0.0, float("-inf")
    for begin_s, end_s in sorted(spans_s):
        total_s += max(0.0, end_s - max(begin_s, until_s))
        until_s = max(until_s, end_s)
    return total_s
