"""`tightwire study seven-methods`: the survey's lossless methods in the lab, beside the published order."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from tightwire import files
from tightwire.cli import made
from tightwire.cli.options import HostsOption, JsonOption, RateOption, shaped_rate
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import LabError
from tightwire.units import of_option, parse_seconds
from tightwire.validate import seven_report
from tightwire.validate.seven_in_lab import Cell, Experiment, run

NAME = "seven-methods"
ABOUT = (
    "Seven lossless methods on ResNet-50- and BERT-shaped workloads, their order beside the published one."
)


def seven_methods(
    models: Annotated[
        str, typer.Option(help="Models of the survey, separated by commas.")
    ] = "ResNet-50,BERT-Base",
    ratios: Annotated[
        str,
        typer.Option(help="The time that the wire is busy, over the time of compute; separated by commas."),
    ] = "0.5,1,2,4",
    workers: HostsOption = 4,
    rate: RateOption = "1gbit",
    compute: Annotated[
        str, typer.Option(help="Emulated compute of a step, a third of it forward: 300ms.")
    ] = "500ms",
    steps: Annotated[
        int, typer.Option(help="Steps per method, after warming up; the median counts.", min=1)
    ] = 5,
    out: Annotated[
        pathlib.Path,
        typer.Option(help="File for the results; the report stands beside it, as .md and .html."),
    ] = pathlib.Path("results/seven_methods.json"),
    as_json: JsonOption = False,
) -> None:
    """Run the seven methods of the quantitative survey (arXiv:2005.13247), and compare their order with its own.

    Real exchanges between processes on an emulated network; compute is emulated by timed waits. Results are kept
    after every cell; the plot needs tightwire[report].

        tightwire study seven-methods

        tightwire study seven-methods --models ResNet-50 --ratios 1,2 --steps 3 \\
            --out out/seven.json
    """
    experiment = _experiment(
        models, ratios, workers, rate, of_option("--compute", parse_seconds, compute), steps
    )
    about = {
        "study": NAME,
        "command": made.command(),
        "machine": made.machine(),
        "experiment": asdict(experiment),
    }
    made.require_results(out)
    files.make_directory(out.parent)
    files.require_writable(out)
    cells: list[Cell] = []
    console = Console(stderr=True)
    with console.status("the lab starts") as status:
        for cell in run(
            experiment, lambda name, row: status.update(f"{name}: {row.plan} {row.step_s:.3f} s")
        ):
            cells.append(cell)
            _keep(cells, about, out)
            _show(cell, err=as_json)
    kept = ", ".join(map(str, _keep(cells, about, out)))
    if as_json:
        say_json({**about, "cells": seven_report.facts(cells)})
    else:
        for sentence in seven_report.sentences(cells):
            say(sentence)
    say(f"Kept in {kept}", err=True)


def _experiment(
    models: str, ratios: str, workers: int, rate: str, compute_s: float, steps: int
) -> Experiment:
    try:
        numbers = tuple(map(float, ratios.split(",")))
    except ValueError as error:
        raise LabError(f"--ratios {ratios}: write numbers separated by commas, such as 0.5,1,2,4.") from error
    return Experiment(
        models=tuple(models.split(",")),
        ratios=numbers,
        workers=workers,
        rate_bytes_per_s=shaped_rate(rate),
        compute_s=compute_s,
        steps=steps,
    )


def _show(cell: Cell, *, err: bool) -> None:
    say(seven_report.title(cell), "", err=err)
    head, *rows = seven_report.table(cell)
    print_rows(head, rows, err=err)
    say("", seven_report.order(cell), "", err=err)


def _keep(cells: Sequence[Cell], about: dict[str, Any], path: pathlib.Path) -> list[pathlib.Path]:
    """Writes what is there so far; returns the files."""
    made_by = f"Made by `{about['command']}` on {about['machine']}."
    texts = {
        path: json.dumps({**about, "cells": seven_report.facts(cells)}, indent=1) + "\n",
        path.with_suffix(".md"): seven_report.markdown(cells, f"{made_by} {_how(about['experiment'])}"),
    }
    if importlib.util.find_spec("plotly") is not None:
        texts[path.with_suffix(".html")] = seven_report.plot(cells, f"{made_by} {_how(about['experiment'])}")
    for file, text in texts.items():
        files.write_text(file, text)
    return list(texts)


def _how(experiment: dict[str, Any]) -> str:
    return (
        f"{experiment['workers']} hosts with links of {8 * experiment['rate_bytes_per_s'] / 1e6:,g} Mb/s each way, "
        f"{experiment['compute_s']:g} s of emulated compute, medians of {experiment['steps']} steps. “Published” is "
        "throughput over that of BSP-A2A in the survey's cell of the nearest wire/compute."
    )
