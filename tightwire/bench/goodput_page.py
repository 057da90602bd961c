"""The page of a goodput run: for each plan, steps and members over time, and the faults that fell into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from tightwire.bench.goodput import KINDS, GoodputRow

BIN_S: Final = 1.0
STEPS, MEMBERS, FAULT = "#2b8cbe", "#636363", "#cb181d"
SYMBOLS: Final = {"kill": "x", "freeze": "square", "cut": "triangle-down"}


def timeline(runs: Sequence[tuple[GoodputRow, GoodputRow]], title: str) -> Any:
    """Returns a plotly figure.

    A band for each plan: steps per second that the job made while workers were struck, a dashed line at what it made
    without faults, each fault where it began, and, on the right, how many workers took part.

    Args:
        runs: of each plan, the run without faults and the one with them.
        title: of the page.
    """
    from plotly.subplots import make_subplots

    drawing = make_subplots(
        rows=len(runs),
        cols=1,
        vertical_spacing=0.36 / max(len(runs), 2),
        subplot_titles=[_headline(free, faulty) for free, faulty in runs],
        specs=[[{"secondary_y": True}]] * len(runs),
    )
    for band, (free, faulty) in enumerate(runs, 1):
        _draw(drawing, band, free, faulty)
    height = 150 + 260 * len(runs)
    drawing.update_layout(
        title={"text": title, "y": 1 - 25 / height},
        template="plotly_white",
        height=height,
        legend={"orientation": "h", "yanchor": "top", "y": 1 - 55 / height, "yref": "container", "x": 0},
        margin={"t": 130},
    )
    drawing.update_annotations(x=0, xanchor="left", font={"size": 14})
    drawing.update_yaxes(title_text="steps per second", rangemode="tozero", secondary_y=False)
    most = max((members for _, run in runs for _, members in run.made), default=1)
    drawing.update_yaxes(
        title_text="workers",
        range=[0, 1.25 * most],
        dtick=max(1, most // 4),
        tickmode="linear",
        showgrid=False,
        secondary_y=True,
    )
    drawing.update_xaxes(title_text="seconds from the first step on", rangemode="tozero")
    return drawing


def _draw(drawing: Any, band: int, free: GoodputRow, faulty: GoodputRow) -> None:
    bins = Counter(int(at_s // BIN_S) for at_s, _ in faulty.made)
    starts = range(max(1, int(faulty.seconds // BIN_S)))  # what is left of the last second is no whole one
    common = {"showlegend": band == 1}  # one entry of the legend for all bands
    drawing.add_bar(
        x=[BIN_S * (index + 0.5) for index in starts],
        y=[bins[index] / BIN_S for index in starts],
        width=BIN_S,
        name="steps per second",
        marker={"color": STEPS},
        row=band,
        col=1,
        **common,
    )
    drawing.add_scatter(
        x=[0, faulty.seconds],
        y=[free.steps_per_s] * 2,
        name="the mean without faults",
        mode="lines",
        line={"dash": "dash", "color": STEPS},
        row=band,
        col=1,
        **common,
    )
    drawing.add_scatter(
        x=[at_s for at_s, _ in faulty.made],
        y=[members for _, members in faulty.made],
        name="workers that took part",
        mode="lines",
        line={"shape": "hv", "width": 1.5, "color": MEMBERS},
        row=band,
        col=1,
        secondary_y=True,
        **common,
    )
    for kind in KINDS:
        struck = [(at_s, rank) for at_s, name, rank in faulty.faults if name == kind]
        drawing.add_scatter(
            x=[at_s for at_s, _ in struck],
            y=[free.steps_per_s / 15] * len(struck),
            text=[f"{kind} of rank {rank}" for _, rank in struck],
            name=kind,
            mode="markers",
            marker={"symbol": SYMBOLS[kind], "size": 10, "color": FAULT},
            hoverinfo="text+x",
            cliponaxis=False,
            row=band,
            col=1,
            **common,
        )


def _headline(free: GoodputRow, faulty: GoodputRow) -> str:
    kept = faulty.steps_per_s / free.steps_per_s
    gap_s = max(faulty.gaps_s, default=0.0)
    faults = "1 fault" if len(faulty.faults) == 1 else f"{len(faulty.faults)} faults"
    return f"{faulty.plan}: {kept:.1%} of its fault-free throughput, {faults}, longest gap {gap_s:.1f} s"
