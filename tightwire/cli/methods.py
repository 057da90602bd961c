"""`tightwire methods`: every member, where it comes from, and what it may be combined with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tightwire.collectives import PROGRAMS
from tightwire.errors import PlanError
from tightwire.plan import FAMILIES, Axis, Plan, catalogue, text_with

app = typer.Typer(rich_markup_mode=None)


@app.command()
def methods(
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """List every method: what it does, its source, and what it may be combined with.

    tightwire methods

    tightwire methods --json | tail -n 1
    """
    rows = list(describe())
    if as_json:
        typer.echo(json.dumps({"methods": rows}))
    else:
        _print(rows)


def describe() -> Iterator[dict[str, Any]]:
    """Yields every member and every program, with the texts on other axes that it goes with."""
    for axis in FAMILIES:
        for name, member in catalogue(axis).items():
            yield _row(axis, name, member.title, member.paper, member.example or name)
        for name, recipe in PROGRAMS.items() if axis == "architecture" else ():
            yield _row(axis, f"allreduce:{name}", recipe.title, recipe.paper, f"allreduce:{name}")


def _row(axis: Axis, name: str, title: str, paper: str, text: str) -> dict[str, Any]:
    partners = [
        partner for other, partner in _texts() if other != axis and _is_legal({axis: text, other: partner})
    ]
    return {"name": name, "axis": axis, "title": title, "paper": paper, "combines_with": partners}


def _texts() -> Iterator[tuple[Axis, str]]:
    for axis in FAMILIES:
        for name, member in catalogue(axis).items():
            yield axis, member.example or name
    for name in PROGRAMS:
        yield "architecture", f"allreduce:{name}"


def _is_legal(answers: dict[Axis, str]) -> bool:
    try:
        Plan.parse(text_with(Plan.parse("bsp"), **answers))
    except PlanError:
        return False
    return True


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("axis", "name", "what it does", "source")
    table.columns[1].no_wrap = True
    for i, row in enumerate(rows):
        last = i + 1 == len(rows) or rows[i + 1]["axis"] != row["axis"]
        table.add_row(row["axis"], row["name"], row["title"], row["paper"], end_section=last)
    table.caption = (
        "A plan is sync/architecture/compression/schedule: bsp/allreduce:ring/int8+ef/fusion:4MiB."
    )
    Console().print(table)
    _print_legality(rows)


def _print_legality(rows: list[dict[str, Any]]) -> None:
    carriers = [row for row in rows if row["axis"] == "architecture"]
    table = Table(
        "compression", *(row["name"].removeprefix("allreduce:") for row in carriers), title="who carries what"
    )
    table.columns[0].no_wrap = True
    for axis, text in _texts():
        if axis == "compression":
            table.add_row(text, *("yes" if text in row["combines_with"] else "–" for row in carriers))
    Console().print(table)
