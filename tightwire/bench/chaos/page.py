"""The pages of a campaign: what it found, in tables; its goodput over time, and every run with its fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from tightwire.bench.chaos.campaign import TrialOutcome, by_fault, by_plan

RIGHT, WRONG = "#2b8cbe", "#cb181d"
BIN_S: Final = 1.0


def summary(outcomes: Sequence[TrialOutcome]) -> dict[str, Any]:
    """Returns what a campaign found, as JSON has it; of each run that ended wrong, all that would repeat it."""
    return {
        "faults": len(outcomes),
        "hangs": sum(bool(o.hangs) for o in outcomes),
        "wrong_names": sum(bool(o.wrong_names) for o in outcomes),
        "divergences": sum(bool(o.divergences) for o in outcomes),
        "leftovers": sum(bool(o.leftovers) for o in outcomes),
        "plans": [asdict(row) for row in by_plan(outcomes)],
        "kinds": [asdict(row) for row in by_fault(outcomes)],
        "found": [
            {key: value for key, value in asdict(o).items() if key != "stepped_s"}
            for o in outcomes
            if o.found
        ],
    }


def tables(found: Mapping[str, Any]) -> str:
    """Returns a page of Markdown of what a campaign found: a summary of it."""
    lines = [
        "# Faults at random",
        "",
        f"{found['faults']:,} runs, each broken once at a moment drawn at random: {found['hangs']} hung, "
        f"{found['wrong_names']} named nobody or the wrong one, {found['divergences']} ended with replicas apart, "
        f"{found['leftovers']} left something behind. *Steps made* is the share of its steps that a worker made "
        "that was not struck: most plans end with a death, and elastic jobs go on.",
    ]
    for head, rows in (("plan", found["plans"]), ("fault", found["kinds"])):
        lines += [
            "",
            f"## By {head}",
            "",
            f"| {head} | faults | steps made | ended wrong |",
            "|---|--:|--:|--:|",
        ]
        lines += [
            f"| `{row['name']}` | {row['faults']} | {100 * row['goodput']:.1f} % | {row['found']} |"
            for row in rows
        ]
    if found["found"]:
        lines += ["", "## What ended wrong", ""]
        for one in found["found"]:
            trial = one["trial"]
            said = "; ".join((*one["hangs"], *one["wrong_names"], *one["divergences"], *one["leftovers"]))
            label = f"`{trial['plan']}`{', elastic' if trial['elastic'] else ''}"
            lines.append(f"- {label}, {trial['fault']} of rank {trial['victim']}: {said}")
    return "\n".join(lines) + "\n"


def timeline(outcomes: Sequence[TrialOutcome], title: str) -> Any:
    """Returns a plotly figure.

    Above: steps per second that workers which were not struck made, and when somebody was struck. Below: lanes per
    plan, as many as runs of it were side by side, in which a run lasts from its start to its last worker's end; red
    where something was wrong with the end.
    """
    from plotly.subplots import make_subplots

    lane_of, lanes = _lanes(outcomes)
    drawing = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[260, 40 + 30 * len(lanes)]
    )
    _draw_steps(drawing, outcomes)
    _draw_strikes(drawing, [o for o in outcomes if o.struck_s is not None])
    _draw_runs(drawing, [o for o in outcomes if not o.found], lane_of, "ended right", RIGHT)
    _draw_runs(drawing, [o for o in outcomes if o.found], lane_of, "ended wrong", WRONG)
    drawing.update_layout(
        title=title, template="plotly_white", barmode="overlay", height=420 + 30 * len(lanes), uniformtext_minsize=8,
        uniformtext_mode="hide", legend={"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0},
        margin={"t": 110},
    )  # fmt: skip
    drawing.update_yaxes(title_text="steps per second", rangemode="tozero", row=1, col=1)
    first = {label: lanes.index(label) for label in lanes}
    drawing.update_yaxes(
        range=[len(lanes) - 0.5, -0.5], tickvals=list(first.values()), ticktext=list(first), row=2, col=1
    )
    drawing.update_xaxes(title_text="seconds from the start of the campaign", row=2, col=1)
    return drawing


def _draw_steps(drawing: Any, outcomes: Sequence[TrialOutcome]) -> None:
    """Draws how many steps were made in each second."""
    bins = Counter(int(at_s // BIN_S) for o in outcomes for at_s in o.stepped_s)
    last = max((int(o.end_s // BIN_S) for o in outcomes), default=0)
    drawing.add_scatter(
        x=[BIN_S * index for index in range(last + 1)],
        y=[bins[index] / BIN_S for index in range(last + 1)],
        name="steps of those not struck",
        line={"shape": "hv", "width": 1, "color": "#636363"},
        row=1,
        col=1,
    )


def _draw_strikes(drawing: Any, struck: Sequence[TrialOutcome]) -> None:
    """Marks when somebody was struck."""
    drawing.add_scatter(
        x=[o.struck_s for o in struck],
        y=[0] * len(struck),
        text=[_about(o) for o in struck],
        name="somebody is struck",
        mode="markers",
        marker={"symbol": "triangle-up", "size": 9, "color": "#e6550d"},
        hoverinfo="text+x",
        row=1,
        col=1,
    )


def _draw_runs(
    drawing: Any, runs: Sequence[TrialOutcome], lane_of: Mapping[TrialOutcome, int], name: str, colour: str
) -> None:
    """Draws runs that ended alike, each as a bar in its lane."""
    drawing.add_bar(
        y=[lane_of[o] for o in runs],
        base=[o.end_s - o.seconds for o in runs],
        x=[o.seconds for o in runs],
        text=[o.trial.fault for o in runs],
        hovertext=["<br>".join((_about(o), *o.found)) for o in runs],
        hoverinfo="text",
        textposition="inside",
        textangle=0,
        insidetextanchor="start",
        constraintext="inside",
        orientation="h",
        width=0.8,  # else it depends on the lanes of the same colour
        name=f"{name}: {len(runs)}",
        marker={"color": colour, "line": {"color": "white", "width": 1}},
        row=2,
        col=1,
    )


def _lanes(outcomes: Sequence[TrialOutcome]) -> tuple[dict[TrialOutcome, int], list[str]]:
    """Returns the lane of each run, and of each lane the plan: runs that were side by side never share one."""
    lanes: list[str] = []
    lane_of: dict[TrialOutcome, int] = {}
    for label in dict.fromkeys(o.trial.label for o in outcomes):
        free_s: list[float] = []  # when each of the plan's lanes becomes free
        begins = len(lanes)
        for outcome in sorted(
            (o for o in outcomes if o.trial.label == label), key=lambda o: o.end_s - o.seconds
        ):
            start_s = outcome.end_s - outcome.seconds
            lane = next((n for n, end_s in enumerate(free_s) if end_s <= start_s), len(free_s))
            free_s[lane : lane + 1] = [outcome.end_s]
            lane_of[outcome] = begins + lane
        lanes += [label] * len(free_s)
    return lane_of, lanes


def _about(outcome: TrialOutcome) -> str:
    trial = outcome.trial
    at = f"at step {trial.at_step}" if trial.at_step >= 0 else "at the start"
    return (
        f"{trial.label}{', large messages' if trial.large else ''}: {trial.fault} of rank {trial.victim} {at}"
    )
