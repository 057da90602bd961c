"""`tightwire map`: the planner's map of which method is best where."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from tightwire import files
from tightwire.cli import made
from tightwire.cli.app import App, progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import FileError
from tightwire.planner import landscape
from tightwire.planner.landscape_picture import picture
from tightwire.units import print_ms

COMMAND = "tightwire map"
PICTURED_WORKERS = 16

app = App()


@app.command("map")
def map_(
    out: Annotated[
        pathlib.Path,
        typer.Option(help="File for the results; the map stands beside it, as .md, .html and .svg."),
    ] = pathlib.Path("results/map.json"),
    as_json: JsonOption = False,
) -> None:
    """Predict which method is best, over bandwidth, model intensity and workers. Nothing is trained.

    tightwire map

    tightwire map --out out/map.json --json
    """
    if out.suffix != ".json":
        raise FileError(
            f"--out {out}: results are kept as .json, as in results/map.json; the map stands beside it."
        )
    files.make_directory(out.parent)
    files.require_writable(*(out.with_suffix(ending) for ending in (".json", ".md", ".html", ".svg")))
    cells = _cells()
    rows = [asdict(cell) for cell in cells]
    kept = "".join(f"\n{json.dumps(row)}," for row in rows).rstrip(",")
    machine = made.machine()
    about = f'"command": {json.dumps(COMMAND)}, "machine": {json.dumps(machine)}'
    files.write_text(out, f'{{{about}, "cells": [{kept}\n]}}\n')
    text, made_by = "\n".join(landscape.lines(cells)), f"{COMMAND} · {machine}"
    files.write_text(out.with_suffix(".md"), made.told(_about() + text + "\n", COMMAND, machine))
    files.write_text(out.with_suffix(".html"), landscape.page(cells, made_by))
    files.write_text(out.with_suffix(".svg"), picture(cells, PICTURED_WORKERS, made_by))
    if as_json:
        say_json({"cells": rows})
    else:
        _print(cells)
    say(f"Kept in {out}, and beside it as .md, .html and .svg", err=True)


def _print(cells: Sequence[landscape.MapCell]) -> None:
    # Units stand above the tables, and large gains have no decimals: so each table fits 80 columns.
    say(
        "Down: compute of a step per 100 MB of gradients. Across: each worker's line, in Gb/s. In a cell: the method, "
        "and how many times as fast as plain all-reduce it reaches a loss.",
        "",
    )
    head = ("compute", *(f"{g:g}" for g in landscape.GIGABITS))
    for allow, workers, rows in landscape.grids(cells):
        say(f"{allow}, {workers} workers. {landscape.legend(rows)}", "")
        shown = [
            (print_ms(compute_s), *(f"{c.letter} {c.speedup:.{0 if c.speedup >= 10 else 1}f}×" for c in row))
            for compute_s, row in zip(landscape.COMPUTE_S, rows, strict=True)
        ]
        print_rows(head, shown)
        say("")
    say(
        "Plans behind the letters:",
        *(f"{idea.letter}: {idea.title} ({', '.join(idea.plans)})" for idea in landscape.IDEAS),
        "",
    )
    say(
        *(f"{name}: {print_ms(compute_s)} of compute per 100 MB" for name, compute_s in landscape.landmarks())
    )


def _cells() -> list[landscape.MapCell]:
    places = len(landscape.WORKERS) * len(landscape.COMPUTE_S) * len(landscape.GIGABITS)
    with progress(places, "predicting") as tell:
        return list(landscape.survey(lambda: tell("predicting", 1)))


def _about() -> str:
    return (
        "# Which method is best where\n\nPredicted by the planner, not measured. A model of 48 equal layers with 100 "
        "MB of gradients stands for all of one intensity (compute per byte to agree on); lines are all alike, with a "
        "latency of 20 µs; codecs run at the memory rate of an accelerator (900 GB/s). In each cell: the method that "
        "changes training least, among those within 10 % of the fastest, and how many times as fast as plain "
        "all-reduce (PyTorch's default) it reaches the loss that exact means reach. How many more steps a method needs "
        "for that is measured on small tasks, or guessed from its relatives.\n\n"
    )
