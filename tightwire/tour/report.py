"""The tour's report: one HTML file that needs nothing else, to be read and forwarded."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from tightwire import files, pages
from tightwire.tour.tour import DDP, DDP_POWERSGD, RACE, PlanResult, TourResult
from tightwire.tour.walk import walk
from tightwire.units import print_ms, print_rate, print_size

# Plans of one role have its colour, and a line each: dashes and gaps, in pixels.
DASHES = ("", "7 4", "2 3", "9 3 2 3")
COLOURS = {"ddp": "#8a8f98", "lossless": "#1f6feb", "lossy": "#d1652b"}
TRACK_COLOURS = {"compute": "#1f6feb", "waiting": "#e3e6ea", "communication": "#d1652b", "codec": "#7a4fbf"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2128; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: break-word }
.wide { overflow-x: auto }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #e3e6ea }
th:first-child, td:first-child { text-align: left; min-width: 9rem }
td + td { white-space: nowrap } th { font-weight: 600; border-bottom: 2px solid #1c2128 }
code { font: .9em ui-monospace, monospace } .verdict { font-size: 1.15rem } .quiet { color: #59636e }
"""
LEGEND_LINE, ROW = 20, 36  # pixels
COLUMNS = ("plan", "steps", "step", "predicted", "exposed", "sent per step", "held-out loss", "to DDP's loss")


def verdict(result: TourResult) -> str:
    """Returns the tour in one sentence."""
    stock = result.stock
    others = [p for p in result.plans if p.role != DDP]
    if result.compared and (stock is None or not others):
        missing = "stock DDP (ddp)" if stock is None else "a plan to compare stock DDP with"
        return f"Nothing was compared: {missing} was not asked for."
    if stock is None or not others:
        return "Stock DDP was not compared: nothing here can slow it down with the rest."
    best = min(others, key=lambda p: p.heldout_loss if math.isfinite(p.heldout_loss) else math.inf)
    losses = f"held-out loss {best.heldout_loss:.3f} against {stock.heldout_loss:.3f} nats per byte"
    if best.heldout_loss >= stock.heldout_loss:
        return f"Stay with stock DDP: in the same time the best other plan, {best.plan}, learnt no more ({losses})."
    said = f"In the same time, {best.plan} made {best.steps / stock.steps:.1f}× the steps of stock DDP: {losses}."
    reached = [(s, label(p)) for p in others if (s := result.to_ddp_loss_s(p)) is not None]
    if reached:
        times = ", ".join(f"{name} after {seconds:.1f} s" for seconds, name in sorted(reached))
        said += f" What stock DDP had learnt after {stock.seconds:.0f} s: {times}."
    return said


def cells(plan: PlanResult, result: TourResult) -> tuple[str, ...]:
    """Returns one plan's cells under `COLUMNS`."""
    reached_s = result.to_ddp_loss_s(plan)
    return (
        label(plan),
        str(plan.steps),
        print_ms(plan.step_s),
        f"{print_ms(plan.predicted_step_s)} ({plan.prediction_error:+.0%})",
        print_ms(plan.exposed_s),
        print_size(plan.bytes_per_step),
        f"{plan.heldout_loss:.3f}",
        "–" if reached_s is None else f"{reached_s:.1f} s",
    )


def label(plan: PlanResult) -> str:
    """Returns what a plan is called."""
    named = {DDP: "stock DDP", DDP_POWERSGD: "stock DDP, PowerSGD hook"}.get(plan.plan, plan.plan)
    return f"race, taken: {named}" if plan.asked == RACE else named


def write(result: TourResult, path: pathlib.Path, made: str = "") -> None:
    """Writes the report.

    Args:
        result: of the tour.
        path: of the page.
        made: by which command and on which machine.
    """
    files.write_text(path, _page(result, made))


def _page(result: TourResult, made: str) -> str:
    options = result.options
    about = (
        f"{options.workers} workers with links of {print_rate(options.rate_bytes_per_s)}, a byte-level transformer of "
        f"{result.facts.get('num_bytes', 0) / 4e6:.1f} million parameters on Python's own library, "
        f"{options.seconds:g} s of training per plan."
    )
    sections = [
        f"<h1>Tightwire tour</h1><p class=quiet>{pages.text(about)}</p>",
        f"<p class=verdict>{pages.text(verdict(result))}</p>",
        _table(result),
        "<h2>From the link to the plan</h2>" + _walk(result),
        "<h2>Loss against time</h2>" + _figure(_curves(result.plans), with_library=True),
        "<h2>One step, seen from rank 0</h2>" + _figure(_timeline(result)),
        "<h2>Why these plans</h2>" + _reasons(result),
        "<h2>How this was measured</h2>" + _method(result, made),
    ]
    return pages.whole("Tightwire tour", "".join(sections), STYLE)


def _table(result: TourResult) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{pages.text(c)}</td>" for c in cells(p, result)) + "</tr>"
        for p in result.plans
    )
    return f"<div class=wide><table><tr>{head}</tr>{rows}</table></div>"


def _walk(result: TourResult) -> str:
    return "<ol>" + "".join(f"<li>{pages.text(sentence)}</li>" for sentence in walk(result)) + "</ol>"


def _reasons(result: TourResult) -> str:
    """Returns the planner's sentences; where allowing more changes nothing, once."""
    allowed: dict[tuple[str, ...], list[str]] = {}
    for allow, why in result.why.items():
        allowed.setdefault(tuple(why), []).append(f"<code>{allow}</code>")
    return "".join(
        f"<p>With {' or '.join(names)} plans allowed:</p><ul>"
        + "".join(f"<li>{pages.text(sentence)}</li>" for sentence in why)
        + "</ul>"
        for why, names in allowed.items()
    )


def _method(result: TourResult, made: str) -> str:
    sentences = [
        *([f"Made by {made}."] if made else []),
        f"The network: {result.lab}",
        "Every plan starts from the same parameters and sees the same text; held-out files are never trained on. "
        "Snapshots are judged after the clock has stopped.",
        "A race pays for itself: what it watches and tries, where the budget is long enough for that, is in its time.",
        "Predictions were made before training, from the probe and the profile alone.",
        "“Exposed” is the time per step in which a worker has nothing to compute: measured for our plans; for stock "
        "DDP, which does not tell, its step less the measured compute.",
        "Bytes are the payload that each worker sends per step, counted for our plans; for stock DDP those of the "
        "ring that its backend runs.",
    ]
    return "<ul>" + "".join(f"<li>{pages.text(s)}</li>" for s in sentences) + "</ul>"


def _figure(figure: Any, *, with_library: bool = False) -> str:
    return str(
        figure.to_html(full_html=False, include_plotlyjs=with_library, config={"displayModeBar": False})
    )


def _curves(plans: Sequence[PlanResult]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for plan, dashes in zip(plans, dashes_of(plans), strict=True):
        seconds, steps, losses = zip(*plan.curve, strict=True)
        figure.add_scatter(
            x=seconds,
            y=losses,
            text=[f"step {s}" for s in steps],
            name=label(plan),
            mode="lines+markers",
            line={
                "color": COLOURS[plan.role],
                "width": 2.5,
                "dash": dashes.replace(" ", "px,") + "px" if dashes else "solid",
            },
        )
    figure.update_layout(
        **_layout(380 + LEGEND_LINE * len(plans)),
        xaxis_title="seconds of training",
        yaxis_title="held-out loss, nats per byte",
    )
    figure.update_layout(legend={"orientation": "v", "y": 1.02, "yanchor": "bottom", "x": 0})
    return figure


def dashes_of(plans: Sequence[PlanResult]) -> list[str]:
    """Returns how the line of each plan is broken: unlike the others of its role."""
    roles = [plan.role for plan in plans]
    return [DASHES[roles[:number].count(role) % len(DASHES)] for number, role in enumerate(roles)]


def _timeline(result: TourResult) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    named: set[str] = set()
    rows: list[str] = []
    for plan in reversed(result.plans):
        bars = _bars(plan, result.facts["compute_s"])
        places = {row: len(rows) + place for place, row in enumerate(dict.fromkeys(row for row, *_ in bars))}
        rows += [
            *places,
            "",
        ]  # the plan's name has a row of its own, so that bars have the width of a narrow screen
        for row, kind, start_s, end_s in bars:
            figure.add_bar(
                y=[places[row]],
                x=[(end_s - start_s) * 1e3],
                base=[start_s * 1e3],
                orientation="h",
                marker_color=TRACK_COLOURS[kind],
                name=kind,
                legendgroup=kind,
                showlegend=kind not in named,
            )
            named.add(kind)
        figure.add_annotation(
            x=0, y=len(rows) - 1, text=_folded(label(plan)), xanchor="left", align="left", showarrow=False
        )
    figure.update_layout(
        **_layout(120 + ROW * len(rows)),
        barmode="overlay",
        xaxis_title="milliseconds",
        yaxis={
            "title": "plan",
            "tickvals": [place for place, row in enumerate(rows) if row],
            "ticktext": [row for row in rows if row],
            "range": [-0.5, len(rows) - 0.5],
        },
    )
    return figure


def _folded(text: str, most: int = 44) -> str:
    """Returns a plan's text on lines of at most so many characters, broken where its parts meet."""
    lines = [""]
    for part in re.findall(r"[^/,]*[/,]?", text):
        if lines[-1] and len(lines[-1] + part) > most:
            lines.append("")
        lines[-1] += part
    return "<br>".join(lines)


def _bars(plan: PlanResult, compute_s: float) -> list[tuple[str, str, float, float]]:
    """Returns (row, kind, start_s, end_s) of a typical step."""
    if plan.trace is None:
        return [
            ("computing", "compute", 0.0, compute_s),
            ("computing", "waiting", compute_s, plan.step_s),
        ]
    spans = [e for e in json.loads(plan.trace.read_text(encoding="utf-8"))["traceEvents"] if e["ph"] == "X"]
    start_us, end_us = _typical_step(spans)
    rows = {"compute": "computing", "communication": "sending", "codec": "sending"}
    bars = []
    for span in sorted(
        spans, key=lambda s: s["cat"] == "codec"
    ):  # drawn over the transfers that contain them
        begin, end = max(span["ts"], start_us), min(span["ts"] + span["dur"], end_us)
        if begin < end:
            kind = "waiting" if span["name"].startswith("wait") else span["cat"]
            bars.append((rows[span["cat"]], kind, (begin - start_us) / 1e6, (end - start_us) / 1e6))
    return bars


def _typical_step(spans: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Returns the start and the end, in microseconds, of the step of median length."""
    ends = [s["ts"] + s["dur"] for s in spans if s["name"] == "optimizer"]
    steps = sorted(itertools.pairwise(ends), key=lambda step: step[1] - step[0])
    return steps[len(steps) // 2] if steps else (min(s["ts"] for s in spans), max(ends))


def _layout(height: int) -> dict[str, Any]:
    return {
        "height": height,
        "template": "simple_white",
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "legend": {"orientation": "h", "y": 1.12},
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }
