"""`tightwire tour`: the main job, on this machine."""

from __future__ import annotations

import json
import pathlib
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tightwire.errors import LabError
from tightwire.lab import parse_rate
from tightwire.tour import report as tour_report
from tightwire.tour import tour as tours
from tightwire.tour.tour import TourOptions, TourResult
from tightwire.units import print_ms, print_rate, print_size

app = typer.Typer(rich_markup_mode=None)

STAGES = {
    "probe": "measuring the wire",
    "profile": "measuring the model",
    "plan": "predicting every plan",
    "train": "training",
}


@app.command()
def tour(
    workers: Annotated[int, typer.Option(help="In the emulated cluster.")] = 4,
    rate: Annotated[
        str, typer.Option(help="Each worker's link, each way: 200mbit, 1gbit, 25MB/s.")
    ] = "200mbit",
    seconds: Annotated[float, typer.Option(help="Of training per plan.")] = 45.0,
    plans: Annotated[
        str,
        typer.Option(help="Separated by spaces: ddp; lossless, lossy, stale (the best of each); or plans."),
    ] = "ddp lossless stale",
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder for the report, measurements and traces.")
    ] = pathlib.Path("out"),
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """See what Tightwire does: a real model on a slow network, under stock DDP and under the plans it chooses.

    The network is emulated here (no root needed where user namespaces are allowed); the training is real. Takes
    under four minutes; writes report.html, cluster.yaml, profile.yaml, plan files and traces to OUT.

        tightwire tour

        tightwire tour --rate 1gbit --workers 2

        tightwire tour --seconds 20 --plans "ddp bsp/allreduce/bf16 local:8"
    """
    rate_bytes_per_s = parse_rate(rate)
    if rate_bytes_per_s is None:
        raise LabError(f"--rate {rate} leaves nothing to show; write for example --rate 200mbit.")
    options = TourOptions(
        workers=workers,
        rate_bytes_per_s=rate_bytes_per_s,
        seconds=seconds,
        plans=tuple(plans.split()),
        out=out,
    )
    result = _take(options)
    report = out / "report.html"
    tour_report.write(result, report)
    if not as_json:
        _print(result)
    typer.echo(f"The report, with curves, timeline and reasons: {report}", err=True)
    if as_json:
        typer.echo(json.dumps(result.to_json()))


def _take(options: TourOptions) -> TourResult:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting the workers", total=None)

        def show(event: dict[str, Any]) -> None:
            match event["event"]:
                case "stage":
                    words = " ".join([STAGES[event["name"]], event.get("detail", "")])
                    progress.reset(task, description=words, total=event["seconds"])
                case "progress":
                    progress.update(task, completed=event["seconds"])
                case _:
                    if line := _line(event):
                        console.print(line, highlight=False)

        return tours.run(options, show)


def _line(event: dict[str, Any]) -> str:
    """Returns what to say of an event."""
    match event["event"]:
        case "lab":
            return f"lab      {event['lab']}"
        case "probed":
            latency = print_ms(event["latency_s"])
            return f"probe    payload at {print_rate(event['bandwidth_bytes_per_s'])} per worker, latency {latency}"
        case "profiled":
            return f"profile  {print_ms(event['compute_s'])} of compute, {print_size(event['num_bytes'])} of gradients"
        case "planned":
            return "\n".join(f"plan     {allow}: {why[0]}" for allow, why in event["why"].items() if why)
        case "trained":
            training = event["training"]
            return (
                f"train    {training['plan']}: {training['steps']} steps of {print_ms(training['step_s'])}, "
                f"held-out loss {training['curve'][-1][2]:.3f}"
            )
    return ""


def _print(result: TourResult) -> None:
    table = Table(*tour_report.COLUMNS, padding=(0, 0))
    table.columns[0].overflow = "fold"  # a plan may be longer than a terminal is wide
    for column in table.columns[1:]:
        column.no_wrap, column.justify = True, "right"
    for plan in result.plans:
        table.add_row(*tour_report.cells(plan))
    console = Console()
    console.print(table)
    console.print(tour_report.verdict(result), highlight=False)
