"""What a validation says: how far predictions are from measurements, fitted and held-out points kept apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tightwire.simulate.interval import DEVIATIONS


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement and its prediction.

    Attributes:
        name: what was measured.
        group: points that compete with one another, such as the methods on one cluster; for ranking and regret.
        measured: in any unit, and
        predicted: in the same.
        held_out: the prediction's constants were not fitted on it.
        stated: the interval that the prediction states, if it states one: its lower end and its upper.
    """

    name: str
    group: str
    measured: float
    predicted: float
    held_out: bool = True
    stated: tuple[float, float] | None = None

    @property
    def error(self) -> float:
        """The prediction's relative error, without its sign."""
        return abs(self.predicted / self.measured - 1)


def interval(predicted: float, deviation: float) -> tuple[float, float]:
    """Returns the ends of the interval that holds 80 %, where logarithms of errors deviate so much."""
    reach = math.exp(DEVIATIONS * deviation)
    return predicted / reach, predicted * reach


def deviation_of(pairs: Iterable[tuple[float, float]], constants: int) -> float:
    """Returns the standard deviation of log(predicted / measured), with as many constants fitted to the pairs."""
    errors = [math.log(predicted / measured) ** 2 for predicted, measured in pairs]
    return math.sqrt(sum(errors) / max(1, len(errors) - constants))


@dataclass(frozen=True, kw_only=True)
class Table:
    """All points of one validation.

    Attributes:
        name: of the validation.
        points: fitted and held out.
        better: whether competing points are better `high` (throughput) or `low` (time); None: they do not compete.
        target: what is to be reached, by statistic.
        note: what a reader must know.
        constants: what was fitted, by what it is called.
    """

    name: str
    points: tuple[Point, ...]
    better: str | None = None
    target: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    constants: Mapping[str, float] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row of statistics for the held-out points, and one for the fitted ones if there are any."""
        parts = [[p for p in self.points if p.held_out is held_out] for held_out in (True, False)]
        return [
            {"name": self.name, "held_out": points[0].held_out, **self._statistics(points)}
            for points in parts
            if points
        ]

    def _statistics(self, points: Sequence[Point]) -> dict[str, Any]:
        errors = [p.error for p in points]
        rho, regret = self._ranking(points) if self.better else (None, None)
        return {
            "points": len(points),
            "mape": statistics.fmean(errors),
            "median": statistics.median(errors),
            "worst": max(errors),
            "spearman": rho,
            "spearman_pooled": _spearman(points) if self.better else None,
            "regret": regret,
            "coverage": _coverage(points),
        }

    def _ranking(self, points: Sequence[Point]) -> tuple[float | None, float]:
        """Returns the mean rank correlation over groups, and the largest regret of picking what is predicted best."""
        groups: dict[str, list[Point]] = {}
        for point in points:
            groups.setdefault(point.group, []).append(point)
        rhos = [rho for group in groups.values() if (rho := _spearman(group)) is not None]
        worst = max(self._regret(group) for group in groups.values())
        return (statistics.fmean(rhos) if rhos else None), worst

    def _regret(self, group: Sequence[Point]) -> float:
        pick = max if self.better == "high" else min
        picked = pick(group, key=lambda p: p.predicted).measured
        best = pick(p.measured for p in group)
        return 1 - picked / best if self.better == "high" else picked / best - 1


def _coverage(points: Sequence[Point]) -> float | None:
    """Returns the share of points inside the intervals that their predictions state; None where none does."""
    inside = [p.stated[0] <= p.measured <= p.stated[1] for p in points if p.stated is not None]
    return statistics.fmean(inside) if inside else None


def _spearman(points: Sequence[Point]) -> float | None:
    """Returns Spearman's rank correlation of predictions and measurements; None where there is nothing to rank."""
    if len(points) < 3:
        return None
    ranks = [_ranks([p.predicted for p in points]), _ranks([p.measured for p in points])]
    if any(len(set(rank)) == 1 for rank in ranks):
        return None
    return statistics.correlation(*ranks)


def _ranks(values: Sequence[float]) -> list[float]:
    """Returns each value's rank; equal values share their mean rank."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]
