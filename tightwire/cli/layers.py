"""`tightwire study layers`: what the five layers are held to, measured here."""

from __future__ import annotations

import json
import pathlib
from typing import Annotated

import typer

from tightwire.cli import made
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say
from tightwire.errors import PlanError
from tightwire.validate.layers import PARTS, LayerRow

ABOUT = "The five layers: every number asked of them, measured and predicted."


def layers(
    part: Annotated[
        list[str] | None,
        typer.Option(help=f"Part to measure: one of {', '.join(PARTS)}; repeatable.", show_default=False),
    ] = None,
    out: Annotated[pathlib.Path, typer.Option(help="File for the results.")] = pathlib.Path(
        "results/layers.json"
    ),
    as_json: JsonOption = False,
) -> None:
    """Hold the five layers to what is asked of them: published runs, programs for uneven networks, several jobs.

    tightwire study layers

    tightwire study layers --part collectives --part dimensions

    The lab's parts take about five minutes on a quiet machine.
    """
    if unknown := [name for name in part or () if name not in PARTS]:
        raise PlanError(f"--part {unknown[0]} is no part; there are {', '.join(PARTS)}.")
    rows: list[LayerRow] = []
    for name in part or PARTS:
        say(f"{name} …", err=True)
        rows += PARTS[name]()
    told = [row.summary() for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"command": made.command(), "machine": made.machine()}
    out.write_text(json.dumps({"about": about, "rows": told}, indent=1) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"rows": told}))
        return
    cells = [
        (
            row.part,
            row.name,
            _number(row.measured),
            _number(row.predicted),
            _asked(row),
            "yes" if row.holds else "NO",
        )
        for row in rows
    ]
    print_rows(("part", "what", "measured", "predicted", "asked", "holds"), cells, texts=2)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _asked(row: LayerRow) -> str:
    return f"{'≥' if row.at_least else '≤'} {row.asked:.3g} {row.unit}"
