"""`tightwire study layers`: what the five layers are held to, measured here."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Annotated

import typer

from tightwire import files
from tightwire.cli import made
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import PlanError
from tightwire.study.report import aligned
from tightwire.validate.layers import PARTS, LayerRow

ABOUT = "The five layers: every number asked of them, measured and predicted."
HEAD = ("part", "what", "measured", "predicted", "asked", "holds")
# What was measured, by part.
Kept = dict[str, list[LayerRow]]


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

    Results are kept after every part, and a study that was stopped goes on with the parts that are missing. What --part
    names is measured again. The whole takes about ten minutes on a quiet machine.
    """
    if unknown := [name for name in part or () if name not in PARTS]:
        raise PlanError(f"--part {unknown[0]} is no part; there are {', '.join(PARTS)}.")
    made.require_results(out)
    files.make_directory(out.parent)
    files.require_writable(out)
    kept = _kept(out)
    for name in part or [name for name in PARTS if name not in kept] or PARTS:
        _measure(name, kept)
        _keep(kept, out)
    rows = [row for name in part or PARTS for row in kept[name]]
    if as_json:
        say_json({"rows": [row.summary() for row in rows]})
    else:
        print_rows(HEAD, [_cells(row) for row in rows], texts=2)
    say(f"Kept in {out} and {out.with_suffix('.md')}", err=True)


def _measure(name: str, kept: Kept) -> None:
    """Measures a part; says what it finds as it finds it."""
    start_s, found = time.perf_counter(), list[LayerRow]()
    say(f"{name} …", err=True)
    for row in PARTS[name]():
        found.append(row)
        say("  ".join(filter(None, _cells(row)[1:])), err=True)
    say(f"{name}: {time.perf_counter() - start_s:.0f} s", err=True)
    kept[name] = found


def _kept(out: pathlib.Path) -> Kept:
    """Returns what was measured before, by part; nothing of a file that holds something else."""
    if not out.exists():
        return {}
    told = files.read_json(out)
    try:
        return {name: [LayerRow.of_summary(row) for row in rows] for name, rows in told["parts"].items()}
    except (KeyError, TypeError, AttributeError):
        raise PlanError(f"{out} holds no results of this study; name another file with --out.") from None


def _keep(kept: Kept, out: pathlib.Path) -> None:
    """Writes all parts: for programs, and as a page."""
    found = {name: kept[name] for name in PARTS if name in kept}
    rows = [row for part in found.values() for row in part]
    about = {"command": made.command(), "machine": made.machine()}
    parts = {name: [row.summary() for row in part] for name, part in found.items()}
    files.write_text(out, json.dumps({"about": about, "parts": parts}, indent=1) + "\n")
    files.write_text(
        out.with_suffix(".md"), _page(about, rows, [name for name in PARTS if name not in found])
    )


def _page(about: dict[str, str], rows: list[LayerRow], missing: list[str]) -> str:
    page = [
        "# Five layers",
        "",
        "How near does each layer of a training system come to what can be asked of it: the cut of the model, the "
        "collectives, several jobs on one network, the network itself, and all of them under rates that change?",
        "",
        f"Made by `{about['command']}` on {about['machine']}. *Predicted* is what the planner or the simulator says; a "
        "row *holds* where what is measured, or else predicted, is within what is asked.",
        "",
        aligned([HEAD, *map(_cells, rows)], texts=2),
    ]
    if missing:
        page += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(page) + "\n"


def _cells(row: LayerRow) -> tuple[str, ...]:
    numbers = _number(row.measured), _number(row.predicted), _asked(row)
    return row.part, row.name, *numbers, "yes" if row.holds else "NO"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _asked(row: LayerRow) -> str:
    return f"{'≥' if row.at_least else '≤'} {row.asked:.3g} {row.unit}".rstrip()
