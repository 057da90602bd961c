"""`tightwire validate`: how far predictions are from what was measured."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tightwire import files
from tightwire.cli import made
from tightwire.cli.app import App
from tightwire.cli.options import JsonOption
from tightwire.cli.pictures import require_picture
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import FileError
from tightwire.validate import Table, report, utilisation
from tightwire.validate.tables import TABLES

app = App()
TOLERANCE = 1e-12
AT_LEAST = ("spearman", "coverage")


@app.command("validate")
def validate(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help=f"One of {', '.join(TABLES)}; may be repeated.", show_default=False),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="One to leave out, such as lab; may be repeated.", show_default=False),
    ] = None,
    points: Annotated[bool, typer.Option(help="Print every point as well.")] = False,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Store points, constants and statistics here, as JSON, and a page beside it.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with code 1 where a target is missed.")
    ] = False,
    utilised: Annotated[
        bool,
        typer.Option(
            "--utilisation",
            help="Instead: Gb/s that methods need between sites to compute 50, 80, 90 % of the time.",
        ),
    ] = False,
    plot: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="With --utilisation: draw it against bandwidth here, as .html.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold the simulator to closed forms, published measurements and the lab, fitted and held-out points apart.

    tightwire validate

    tightwire validate --only nccl-sizes --only megatron --points

    tightwire validate --without lab --strict --out results/validate.json

    tightwire validate --utilisation --plot utilisation.html

    The lab's table takes about ten minutes on a quiet machine.
    """
    for option, names in (("--only", only or ()), ("--without", without or ())):
        if unknown := [name for name in names if name not in TABLES]:
            raise FileError(f"{option} {unknown[0]} is no validation; known: {', '.join(TABLES)}.")
    if out is not None and out.suffix != ".json":
        raise FileError(f"--out {out}: results are stored as .json; a page stands beside it, as .md.")
    if plot is not None and plot.suffix != ".html":
        raise FileError(f"--plot {plot}: utilisation is drawn as .html.")
    require_picture(plot, "--plot")
    files.require_writable(out, plot)
    if utilised:
        beside = {"--only": only, "--without": without, "--points": points, "--out": out, "--strict": strict}
        if refused := [option for option, value in beside.items() if value]:
            raise FileError(
                f"{refused[0]} is of tables, and --utilisation makes none: leave out one of the two."
            )
        _utilisation(plot, as_json)
        return
    if plot is not None:
        raise FileError(f"--plot {plot} draws utilisation; write --utilisation as well.")
    names = [name for name in dict.fromkeys(only or TABLES) if name not in (without or ())]
    if not names:
        raise FileError("--without leaves out all that --only names; nothing remains to validate.")
    tables = []
    for name in names:
        say(f"{name} …", err=True)
        tables.append(TABLES[name]())
    rows = [row for table in tables for row in table.rows()]
    if out is not None:
        files.write_text(out, json.dumps({"tables": rows, "points": stored(tables)}, indent=1) + "\n")
        needs = [] if only else list(utilisation.needs())
        page = report.markdown(tables, needs, made.command(), made.machine())
        files.write_text(out.with_suffix(".md"), page)
        say(f"Stored in {out}, and beside it as .md.", err=True)
    if as_json:
        say_json({"tables": rows})
    else:
        if points:
            _print_points(tables)
        _print(tables)
    if strict and (missed := [table.name for table in tables if missed_targets(table)]):
        say(f"tightwire: targets are missed by {', '.join(missed)}.", err=True)
        raise typer.Exit(1)


def _utilisation(plot: pathlib.Path | None, as_json: bool) -> None:
    needs = list(utilisation.needs())
    if plot is not None:
        files.write_text(plot, utilisation.plot())
    if as_json:
        say_json({"utilisation": [need.values() for need in needs]})
        return
    print_rows(
        ("plan", "model", *(f"{share:.0%} computing" for share in utilisation.UTILISATIONS)),
        [(n.plan, n.model, *("never" if g is None else f"{g:,.3g} Gb/s" for g in n.gigabits)) for n in needs],
        texts=2,
        caption="Predicted bandwidth between two sites, each way, with which devices compute so much of the time; a "
        "step of compute takes 0.1, 0.8 and 4.9 s for 1, 10 and 100 billion parameters, as in arXiv:2501.18512.",
    )


def stored(tables: Sequence[Table]) -> dict[str, Any]:
    """Returns every table's points, constants and note, as plain values."""
    return {
        table.name: {
            "note": table.note,
            "constants": dict(table.constants),
            "points": [[p.name, p.measured, p.predicted, p.held_out] for p in table.points],
        }
        for table in tables
    }


def _print(tables: Sequence[Table]) -> None:
    cells = [
        (
            table.name,
            "held out" if row["held_out"] else "fitted",
            str(row["points"]),
            *(_percent(row[key]) for key in ("mape", "median", "worst")),
            _number(row["spearman"]),
            _percent(row["regret"]),
            _percent(row["coverage"]),
        )
        for table in tables
        for row in table.rows()
    ]
    print_rows(
        ("table", "points are", "points", "MAPE", "median", "worst", "rank", "regret", "covered"),
        cells,
        texts=2,
        caption="rank: mean rank correlation (Spearman) of what competes; regret: of picking what is predicted best; "
        "covered: share of measurements inside the intervals that were stated, which are to hold 80 %.",
    )
    for table in tables:
        say(f"{table.name}: {verdict(table)}. {table.note}")


def missed_targets(table: Table) -> list[str]:
    """Returns the statistics of the held-out points that miss their targets."""
    row = next(row for row in table.rows() if row["held_out"])
    return [
        key
        for key, target in table.target.items()
        if not (row[key] >= target if key in AT_LEAST else row[key] <= target + TOLERANCE)
    ]


def verdict(table: Table) -> str:
    """Returns each target with whether it is met."""
    parts, missed = [], missed_targets(table)
    for key, target in table.target.items():
        met = key not in missed
        sign = "≥" if key in AT_LEAST else "≤"
        shown = f"{target:g}" if key == "spearman" or target < 1e-3 else f"{target:.3g}"
        parts.append(f"{key} {sign} {shown} {'met' if met else 'MISSED'}")
    return ", ".join(parts) or "no target"


def _print_points(tables: Sequence[Table]) -> None:
    for table in tables:
        cells = [
            (
                p.name,
                "held out" if p.held_out else "fitted",
                f"{p.measured:.4g}",
                f"{p.predicted:.4g}",
                f"{p.predicted / p.measured - 1:+.1%}",
            )
            for p in table.points
        ]
        print_rows((table.name, "point is", "measured", "predicted", "error"), cells, texts=2)


def _percent(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if value >= 5e-4 or value == 0 else f"{value:.0e}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
