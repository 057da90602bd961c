"""`tightwire tour`: the main job, on this machine."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tightwire import files
from tightwire.cli import made
from tightwire.cli.app import App
from tightwire.cli.options import JsonOption, RateOption, shaped_rate
from tightwire.cli.pictures import require_plotly
from tightwire.cli.table import print_rows, say, say_json
from tightwire.tour import curves
from tightwire.tour import report as tour_report
from tightwire.tour import tour as tours
from tightwire.tour.tour import TourOptions, TourResult
from tightwire.units import print_ms, print_rate, print_size

app = App()

STAGES = {
    "probe": "measuring the wire",
    "profile": "measuring the model",
    "plan": "predicting every plan",
    "train": "training",
}


@app.command()
def tour(
    workers: Annotated[int, typer.Option(help="Number of workers in the emulated cluster.")] = 4,
    rate: RateOption = "200mbit",
    seconds: Annotated[float, typer.Option(help="Seconds of training per plan.")] = 45.0,
    plans: Annotated[
        str,
        typer.Option(
            help="Plans, separated by spaces: ddp; ddp+powersgd:4; lossless, lossy, stale (the best of each); race; "
            "or a plan."
        ),
    ] = " ".join(tours.SHOWN),
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder for the report, measurements and traces.")
    ] = pathlib.Path("out"),
    as_json: JsonOption = False,
) -> None:
    """See what Tightwire does: a real model on a slow network, under stock DDP and under the plans it chooses.

    The network is emulated here (no root needed where user namespaces are allowed); the training is real. Takes
    under five minutes; writes report.html, curves.svg, cluster.yaml, profile.yaml, plan files and traces to OUT.

        tightwire tour

        tightwire tour --rate 1gbit --workers 2

        tightwire tour --seconds 20 --plans "ddp bsp/allreduce/bf16 local:8"
    """
    options = TourOptions(
        workers=workers,
        rate_bytes_per_s=shaped_rate(rate),
        seconds=seconds,
        plans=tuple(plans.split()),
        out=out,
    )
    require_plotly("the report of a tour")
    result = _take(options)
    report = out / "report.html"
    made_by = f"{made.command()} · {made.machine()}"
    tour_report.write(result, report, made_by)
    files.write_text(out / "curves.svg", curves.picture(result, made_by))
    if not as_json:
        _print(result)
    say(f"The report, with curves, timeline and reasons: {report}", err=True)
    if as_json:
        say_json(result.to_json())


def _take(options: TourOptions) -> TourResult:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting the workers", total=None)

        def show(event: dict[str, Any]) -> None:
            match event["event"]:
                case "stage":
                    if line := _line(event):
                        console.print(line, highlight=False)
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
        case "stage" if "lost_s" in event:
            return (
                f"race     tries plans on the job; at most {event['lost_s']:.1f} s of its {event['seconds']:g} s "
                "are lost on those that do not win"
            )
        case "trained":
            training = event["training"]
            return (
                f"train    {training['plan']}: {training['steps']} steps of {print_ms(training['step_s'])}, "
                f"held-out loss {training['curve'][-1][2]:.3f}"
            )
    return ""


def _print(result: TourResult) -> None:
    print_rows(
        tour_report.COLUMNS,
        [tour_report.cells(plan, result) for plan in result.plans],
        caption=tour_report.verdict(result),
    )
