"""The seven methods' report: a table per cell, the two orders, and why they differ; for terminals and for keeping."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from tightwire import pages
from tightwire.study.report import aligned
from tightwire.validate.seven_in_lab import BASE, CREDIT_SLICES, PLANS, SLICES, Cell

DEDICATED = (
    "The survey gives servers hosts of their own, one beside each worker node, and each node adds up its four GPUs' "
    "gradients first: its line carries the gradients once each way, where a ring carries them 2(n − 1)/n times. Here "
    "servers share the workers' hosts and links, so servers and ring carry the same."
)
SHARED = (
    "A message per tensor costs processor time here, of a few cores that all hosts share, and tensors are scaled down "
    "while their number stays; the survey's machines had processors of their own."
)
# What is not as in the survey, and bears on a method's place.
REASONS = {
    "BSP-PS": DEDICATED,
    "WFBP-PS": f"{DEDICATED} {SHARED}",
    "ByteScheduler-PS": DEDICATED,
    "WFBP-A2A": SHARED,
    "MG-WFBP": f"It merges by the latency it measures. {SHARED}",
    "ByteScheduler-A2A": "The survey ran it over Horovod, untuned, where hooks hold every layer's forward: on "
    "ResNet-50 it made 658 samples/s on 4 GPUs of one node, where nothing crosses a network, and WFBP-A2A 1,015. Here "
    "slices begin in one agreed order and no layer waits but for its own parameters.",
    BASE: "It is what others are compared with, and moves only as they do.",
}
QUESTION = (
    "How do the methods of Shi et al., A Quantitative Survey of Communication Optimizations in Distributed Deep "
    "Learning (arXiv:2005.13247), compare here, and is their order the published one?"
)
HEAD = (
    "method", "s a step", "range", f"over {BASE}", "published", "of the bound", "place", "published place",
)  # fmt: skip


def markdown(cells: Sequence[Cell], made: str) -> str:
    """Returns the report to be kept."""
    parts = [
        "# Seven lossless methods in the lab",
        QUESTION,
        made,
        *(part for cell in cells for part in (f"## {title(cell)}", aligned(table(cell)), order(cell))),
        "## Beside the published order",
        "\n".join(f"- {sentence}" for sentence in sentences(cells)),
    ]
    return "\n\n".join(parts) + "\n"


def title(cell: Cell) -> str:
    """Returns what a cell is."""
    return f"{cell.model}-shaped, wire/compute {cell.wire_over_compute:g} (bound {cell.bound_s:.3f} s)"


def table(cell: Cell) -> list[tuple[str, ...]]:
    """Returns one row per method, under `HEAD`; what is published is throughput over that of `BSP-A2A`."""
    return [HEAD, *(_line(cell, method) for method in cell.rows)]


def _line(cell: Cell, method: str) -> tuple[str, ...]:
    row, places = cell.rows[method], cell.place(method)
    return (
        method,
        f"{row.step_s:.3f}",
        f"{row.low_s:.3f}–{row.high_s:.3f}",
        f"{cell.speedup(method):.2f} ×",
        f"{cell.published_speedup(method):.2f} ×",
        f"{row.ratio:.3f}",
        *map(str, places),
    )


def order(cell: Cell) -> str:
    """Returns how the two orders agree, in a sentence."""
    rho, regret = cell.agreement()
    there = cell.published
    return (
        f"Published: {there.network}, {there.gpus} GPUs, wire/compute {there.wire_over_compute:.2f}. Spearman of the "
        f"two orders {rho:.2f}; who picks there what is fastest here loses {regret:.1%}."
    )


def sentences(cells: Sequence[Cell]) -> Iterator[str]:
    """Yields what differs from the published order, by method, and why it may."""
    rhos, regrets = zip(*(cell.agreement() for cell in cells), strict=True)
    yield (
        f"Over {len(cells)} cell{'s' * (len(cells) > 1)} Spearman is {statistics.fmean(rhos):.2f} in the mean, "
        f"{min(rhos):.2f} to {max(rhos):.2f}; picking there what is fastest here loses {max(regrets):.1%} at most."
    )
    far = [c for c in cells if not 1 / 2 <= c.published.wire_over_compute / c.wire_over_compute <= 2]
    if far:
        yield (
            f"{len(far)} of {len(cells)} cells have no published one within a factor of 2 of their wire/compute: the "
            "nearest is shown, but there the orders need not be alike."
        )
    yield (
        f"ByteScheduler's slices are 1/{SLICES} of the gradients and its credit is {CREDIT_SLICES} slices, as the "
        "survey's 4 MB and 16 MB are of ResNet-50's; of BERT-Base's, 4 MB are 1/110."
    )
    for method in PLANS:
        here, there = (
            statistics.fmean(places) for places in zip(*(c.place(method) for c in cells), strict=True)
        )
        if abs(here - there) >= 1:
            yield (
                f"{method} is in place {here:.1f} here and {there:.1f} as published, in the mean. What is not as "
                f"there: {REASONS[method]}"
            )


def facts(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Returns the cells for JSON."""
    return [_facts(cell) for cell in cells]


def _facts(cell: Cell) -> dict[str, Any]:
    rho, regret = cell.agreement()
    rows = [
        {
            "method": method,
            **asdict(row),
            "speedup": cell.speedup(method),
            "published_speedup": cell.published_speedup(method),
        }
        for method, row in cell.rows.items()
    ]
    return {**asdict(cell), "rows": rows, "spearman": rho, "regret": regret}


def plot(cells: Sequence[Cell], made: str) -> str:
    """Returns the report as a page: the words and tables of `markdown`, and a step over its bound, model by model.

    Raises:
        ModuleNotFoundError: plotly is not installed (`tightwire[report]`).
    """
    from plotly.subplots import make_subplots

    models = list(dict.fromkeys(cell.model for cell in cells))
    figure = make_subplots(1, len(models), subplot_titles=models, shared_yaxes=True)
    for column, model in enumerate(models, start=1):
        mine = sorted((c for c in cells if c.model == model), key=lambda c: c.wire_over_compute)
        for number, method in enumerate(PLANS):
            figure.add_scatter(
                x=[cell.wire_over_compute for cell in mine],
                y=[cell.rows[method].ratio for cell in mine],
                name=method,
                mode="lines+markers",
                line={"color": COLOURS[number], "dash": "dot" if method.endswith("PS") else "solid"},
                legendgroup=method,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.update_xaxes(
        type="log", title_text="wire / compute", tickvals=sorted({c.wire_over_compute for c in cells})
    )
    figure.update_layout(
        template="simple_white",
        title="A step over its bound, by method",
        yaxis_title="step / max(compute, wire)",
        height=480,
    )
    drawn = figure.to_html(include_plotlyjs=True, full_html=False, config={"displayModeBar": False})
    parts = [
        "<h1>Seven lossless methods in the lab</h1>",
        f"<p>{html.escape(QUESTION)}</p><p class=quiet>{_prose(made)}</p>",
        "<h2>A step over its bound, against wire/compute</h2>",
        "<p>Lower is better; 1 is the bound: the larger of compute and wire.</p>"
        f"<div class=wide>{drawn}</div>",
        "<h2>Beside the published order</h2><ul>",
        *(f"<li>{html.escape(sentence)}</li>" for sentence in sentences(cells)),
        "</ul>",
        *(_section(cell) for cell in cells),
    ]
    return pages.whole("Seven lossless methods", "".join(parts), STYLE)


def _prose(text: str) -> str:
    """Returns text as HTML, what stands between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _section(cell: Cell) -> str:
    head, *rows = table(cell)
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row) + "</tr>"
        for tag, group in (("th", [head]), ("td", rows))
        for row in group
    ]
    return (
        f"<h2>{html.escape(title(cell))}</h2><div class=wide><table>{''.join(lines)}</table></div>"
        f"<p>{html.escape(order(cell))}</p>"
    )


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c2128}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}th,td{padding:.3rem .6rem;"
    "text-align:right;border-bottom:1px solid #e3e6ea}th:first-child,td:first-child{text-align:left}"
    ".quiet{color:#59636e}.wide{overflow-x:auto}.wide>div{min-width:50rem}"
)


COLOURS = ("#8a8f98", "#59636e", "#7fb0f5", "#1f6feb", "#7a4fbf", "#e8a27c", "#d1652b")
