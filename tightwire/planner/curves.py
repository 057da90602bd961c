"""Throughput against bandwidth: what each of a few plans would do on a faster or a slower wire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tightwire.errors import PlanError, ProgramError
from tightwire.planner.ranking import Ranking
from tightwire.simulate import predict
from tightwire.units import print_rate, print_size

# Bandwidths looked at: from a thirtieth of the present one to thirty times as much.
POINTS, REACH = 25, 30.0
MOST_PLANS = 6
WIDTH, HEIGHT = 64, 14


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One plan over bandwidth.

    Attributes:
        plan: its text.
        steps_per_s: at each bandwidth.
    """

    plan: str
    steps_per_s: tuple[float, ...]


def curves(ranking: Ranking) -> tuple[tuple[float, ...], tuple[Curve, ...]]:
    """Returns bandwidths in bytes per second, and the curves of the choice, of plain all-reduce and of a few others.

    The others differ from those before in what is sent or when: an order of the same transfers makes no other curve.
    """
    here = ranking.cluster.bandwidth_bytes_per_s
    factors = [REACH ** (2 * i / (POINTS - 1) - 1) for i in range(POINTS)]
    found = []
    for plan in [row.plan for row in ranking.shortlist[:MOST_PLANS]]:
        try:
            steps = [
                1 / predict(plan, ranking.profile, ranking.cluster.scaled(f), quick=True).step_s
                for f in factors
            ]
        except (PlanError, ProgramError):
            continue
        found.append(Curve(plan=str(plan), steps_per_s=tuple(steps)))
    return tuple(here * factor for factor in factors), tuple(found)


def plot(bandwidths: Sequence[float], drawn: Sequence[Curve], here: float) -> list[str]:
    """Returns the curves as lines of text: a letter per plan, the first plan on top, `│` at the present bandwidth.

    Args:
        bandwidths: bytes per second, ascending, at equal ratios.
        drawn: curves over them.
        here: the present bandwidth.
    """
    most = max(max(curve.steps_per_s) for curve in drawn)
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    column = _column(bandwidths, here)
    for row in grid:
        row[column] = "│"
    for number, curve in reversed(list(enumerate(drawn))):
        for x in range(WIDTH):
            height = _at(curve.steps_per_s, x / (WIDTH - 1)) / most
            grid[min(HEIGHT - 1, int((1 - height) * HEIGHT))][x] = _letter(number)
    lines = [
        f"{most * (1 - i / HEIGHT):>9.3g} ┤{''.join(row)}" if i % 3 == 0 else f"{'':>9} │{''.join(row)}"
        for i, row in enumerate(grid)
    ]
    low, middle, high = print_rate(bandwidths[0]), print_rate(here), print_rate(bandwidths[-1])
    lines.append(f"{'steps/s':>9} └{'─' * WIDTH}")
    left = max(len(low) + 1, column - len(middle) // 2)
    axis = f"{low:<{left}}{middle}"
    lines.append(f"{'':>11}{axis}{high:>{max(len(high) + 1, WIDTH - len(axis))}}")
    lines += [f"{'':>11}{_letter(number)} {curve.plan}" for number, curve in enumerate(drawn)]
    return lines


def figure(ranking: Ranking) -> Any:
    """Returns the curves of a ranking as a plotly figure; both axes logarithmic."""
    import plotly.graph_objects as go

    bandwidths, drawn = curves(ranking)
    here = ranking.cluster.bandwidth_bytes_per_s * 8 / 1e9
    found = go.Figure()
    for curve in drawn:
        found.add_scatter(
            x=[b * 8 / 1e9 for b in bandwidths], y=curve.steps_per_s, name=curve.plan, mode="lines"
        )
    found.add_vline(x=here, line={"dash": "dot", "color": "#8a8f98"})
    # On a logarithmic axis an annotation stands at the logarithm of its place.
    found.add_annotation(
        x=math.log10(here), y=1.0, yref="paper", yanchor="bottom", text="here", showarrow=False
    )
    workers, size = ranking.cluster.workers, print_size(ranking.profile.num_bytes)
    found.update_layout(
        template="plotly_white",
        title=f"Steps per second against bandwidth: {workers} workers, {size} of gradients, predicted",
        legend={"orientation": "h", "y": -0.2},
        xaxis={"title": "bandwidth of each worker's line, Gb/s of payload", "type": "log"},
        yaxis={"title": "steps per second", "type": "log"},
    )
    return found


def _letter(number: int) -> str:
    return "ABCDEFGHIJ"[number]


def _column(bandwidths: Sequence[float], here: float) -> int:
    span = math.log(bandwidths[-1] / bandwidths[0]) or 1.0
    return round((WIDTH - 1) * math.log(here / bandwidths[0]) / span)


def _at(values: Sequence[float], share: float) -> float:
    """Returns a value between points, linearly."""
    place = share * (len(values) - 1)
    low = min(int(place), len(values) - 2) if len(values) > 1 else 0
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)
