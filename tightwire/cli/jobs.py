"""`tightwire jobs`: several jobs on one network, predicted under every policy."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tightwire.cli.app import App, progress
from tightwire.cli.options import JsonOption
from tightwire.cli.pictures import require_picture, write_picture
from tightwire.cli.table import print_rows, say, say_json
from tightwire.files import require_writable
from tightwire.jobs import POLICIES, PolicyOutcome, policy, predict_jobs, read_jobs

app = App()


@app.command()
def jobs(
    path: Annotated[pathlib.Path, typer.Argument(help="The jobs and their cluster, as YAML.")],
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", help=f"Network policy: one of {', '.join(POLICIES)}; repeatable.", show_default=False
        ),
    ] = None,
    plot: Annotated[
        pathlib.Path | None, typer.Option(help="Draw a timeline here, as .html or .png.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict what jobs do to each other on one network: each job's slowdown under every network policy.

        tightwire jobs jobs.yaml --plot timeline.html

    The file holds, for example:

        cluster: cluster.yaml
        jobs:
        - {name: big, workers: [0, 2], compute_s: 0.55, exchange_bytes: 40000000}
        - {name: urgent, workers: [1, 3], compute_s: 0.2, exchange_bytes: 2000000}

    Each job computes, then its workers average so many bytes by its plan (bsp/allreduce:ring unless told).

        tightwire jobs jobs.yaml

        tightwire jobs jobs.yaml --policy fair --policy interleaved \\
            --plot jobs.html
    """
    require_writable(plot)
    require_picture(plot, "--plot")
    policies = [policy(name) for name in only or POLICIES]
    built, _ = read_jobs(path)
    found = []
    with progress(len(policies), "predicting") as tell:
        for under in policies:
            found.append(predict_jobs(built, under))
            tell(under.name, 1)
    if plot is not None:
        write_picture(drawing_of(found), plot, "--plot")
    if as_json:
        say_json({"policies": [outcome.summary() for outcome in found]})
        return
    _print(found)


def _print(found: Sequence[PolicyOutcome]) -> None:
    cells = []
    for outcome in found:
        for job in outcome.jobs:
            times = (
                f"{job.alone_s:.3g} s",
                f"{job.step_s:.3g} s",
                f"{job.slowdown:.2f} ×",
                f"{job.tail_s:.3g} s",
            )
            cells.append((outcome.policy, job.name, *times))
    print_rows(("policy", "job", "alone", "step", "slowdown", "tail"), cells, texts=2)
    for outcome in found:
        say(f"{outcome.policy}: {outcome.mean_slowdown:.2f} × in the mean. {outcome.why}")


def drawing_of(found: Sequence[PolicyOutcome]) -> Any:
    """Returns a picture of when each job computes and exchanges, its first steps under every policy."""
    import plotly.graph_objects as go

    drawing = go.Figure()
    for what, first, last, colour in (("computes", 0, 1, "#9ecae1"), ("exchanges", 2, 3, "#e6550d")):
        spans = [
            (f"{outcome.policy}: {job.name}", step[first], step[last])
            for outcome in found
            for job in outcome.jobs
            for step in job.steps
        ]
        drawing.add_bar(
            y=[label for label, _, _ in spans],
            base=[begin_s for _, begin_s, _ in spans],
            x=[end_s - begin_s for _, begin_s, end_s in spans],
            orientation="h",
            name=what,
            marker_color=colour,
        )
    drawing.update_layout(
        barmode="overlay",
        title="When each job computes and exchanges, predicted",
        xaxis_title="seconds",
        yaxis_title="policy: job",
    )
    return drawing
