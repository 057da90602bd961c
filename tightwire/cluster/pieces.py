"""Times against sizes: one α–β line where one is enough, several where the software switches protocol by size.

NCCL takes LL for small messages, LL128 for middling ones and Simple for large ones, over a ring, a tree or the switch
itself (NCCL's tuning.cc): each has an α and a β of its own, so that one line through all sizes is wrong everywhere.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire import files
from tightwire.cluster.limits import MAX_LATENCY_S, require_range

Point = tuple[float, float]  # bytes, seconds

MAX_PIECES = 5
LEAST_POINTS = 3  # of a piece: two constants, and one point that can contradict them
# A piece more must be worth its two constants and its place: times scatter by about this much from run to run.
SCATTER = 0.02


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """α and β for messages of `from_bytes` and more, until the next line begins."""

    __pydantic_config__: ClassVar = files.STRICT

    from_bytes: float
    alpha_s: float
    beta_s_per_byte: float

    def __post_init__(self) -> None:
        require_range("from_bytes", self.from_bytes, 0.0, 1e18)
        require_range("alpha_s", self.alpha_s, 0.0, MAX_LATENCY_S * 1000)
        require_range("beta_s_per_byte", self.beta_s_per_byte, 0.0, 1.0)

    def seconds(self, num_bytes: float) -> float:
        """Returns the time of a message."""
        return self.alpha_s + self.beta_s_per_byte * num_bytes


def fit_line(points: Sequence[Point]) -> tuple[float, float]:
    """Returns α ≥ 0 and β ≥ 0 of least squares of the relative errors."""
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    rise = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
    beta = rise / spread if spread else 0.0
    if beta <= 0:
        return mean_y, 0.0
    if (alpha := mean_y - beta * mean_x) >= 0:
        return alpha, beta
    return 0.0, sum(w * x * y for w, (x, y) in zip(weights, points, strict=True)) / sum(
        w * x * x for w, (x, _) in zip(weights, points, strict=True)
    )


def fit_lines(points: Sequence[Point]) -> tuple[tuple[CostLine, ...], float]:
    """Returns as few lines as follow the points, each from where the one before ends, and the residual.

    Lines are chosen by dynamic programming over all places to cut (Bellman 1961), their number by the Bayesian
    information criterion with errors no smaller than what times scatter by.

    Args:
        points: bytes and seconds of at least one message, all above 0.

    Returns:
        The lines, and the root mean square of the relative errors, over as many points as are left when each line has
        had its two constants: what to expect of sizes that were not measured.
    """
    ordered = sorted(points)
    best = min(_cuts(ordered), key=lambda cuts: _criterion(ordered, cuts))
    parts = [ordered[a:b] for a, b in itertools.pairwise((0, *best, len(ordered)))]
    lines: list[CostLine] = []
    for part, before in zip(parts, [None, *parts], strict=False):
        alpha_s, beta = fit_line(part)
        line = CostLine(from_bytes=0.0, alpha_s=alpha_s, beta_s_per_byte=beta)
        if before is not None:
            line = dataclasses.replace(line, from_bytes=_meeting(lines[-1], line, before[-1][0], part[0][0]))
        lines.append(line)
    error = sum(e for part in parts for e in _squares(part))
    return tuple(lines), math.sqrt(error / max(1, len(ordered) - 2 * len(lines)))


def _meeting(first: CostLine, second: CostLine, low: float, high: float) -> float:
    """Returns where two lines meet, if that is between the sizes they were fitted to; else halfway on a log scale."""
    slope = first.beta_s_per_byte - second.beta_s_per_byte
    meeting = (second.alpha_s - first.alpha_s) / slope if slope else 0.0
    return meeting if low < meeting <= high else math.sqrt(low * high)


def _cuts(points: Sequence[Point]) -> list[tuple[int, ...]]:
    """Returns the best places to cut for every number of pieces."""
    sizes = [size for size, _ in points]
    last = len(points)
    may_cut = [i for i in range(1, last) if sizes[i - 1] < sizes[i]]
    errors = {
        (a, b): sum(_squares(points[a:b]))
        for a, b in itertools.combinations([0, *may_cut, last], 2)
        if len(set(sizes[a:b])) >= LEAST_POINTS or (a, b) == (0, last)
    }
    reach: dict[int, tuple[float, tuple[int, ...]]] = {b: (e, ()) for (a, b), e in errors.items() if a == 0}
    found = [reach[last][1]]
    for _ in range(1, MAX_PIECES):
        further: dict[int, tuple[float, tuple[int, ...]]] = {}
        for (a, b), error in errors.items():
            if a in reach and (total := reach[a][0] + error) < further.get(b, (math.inf, ()))[0]:
                further[b] = total, (*reach[a][1], a)
        if last not in further:
            break
        found.append(further[last][1])
        reach = further
    return found


def _criterion(points: Sequence[Point], cuts: tuple[int, ...]) -> float:
    edges = (0, *cuts, len(points))
    error = sum(sum(_squares(points[a:b])) for a, b in itertools.pairwise(edges))
    constants = 3 * (len(cuts) + 1) - 1
    return len(points) * math.log(error / len(points) + SCATTER**2) + constants * math.log(len(points))


def _squares(points: Sequence[Point]) -> list[float]:
    alpha_s, beta = fit_line(points)
    return [((alpha_s + beta * size) / seconds - 1) ** 2 for size, seconds in points]
