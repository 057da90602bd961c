"""`tightwire methods`: every member, where it comes from, and what it may be combined with."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tightwire.answers import Axis, text_with
from tightwire.architecture import PROGRAMS
from tightwire.architecture.gossip import GRAPHS
from tightwire.catalogue import FAMILIES, catalogue
from tightwire.errors import PlanError
from tightwire.plan import Plan

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
        typer.echo(json.dumps({"methods": rows, "legality": [asdict(case) for case in legality()]}))
    else:
        _print(rows)


def describe() -> Iterator[dict[str, Any]]:
    """Yields every member, every program and every graph of gossip, with the texts on other axes that it goes with."""
    for axis in FAMILIES:
        for name, member in catalogue(axis).items():
            yield _row(axis, name, member.title, member.paper, member.example or name)
        for name, recipe in PROGRAMS.items() if axis == "architecture" else ():
            yield _row(axis, f"allreduce:{name}", recipe.title, recipe.paper, f"allreduce:{name}")
        for name, graph in GRAPHS.items() if axis == "architecture" else ():
            yield _row(axis, f"gossip:{name}", graph.title, graph.paper, f"gossip:{name}")


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One cell of the legality matrix.

    Attributes:
        sync: a policy.
        architecture: who talks to whom.
        compression: what is sent.
        refusal: why they do not go together, with the nearest legal plans; None where they do.
    """

    sync: str
    architecture: str
    compression: str
    refusal: str | None

    @property
    def plan(self) -> str:
        """The text of the three together."""
        return f"{self.sync}/{self.architecture}/{self.compression}"


def legality() -> Iterator[Combination]:
    """Yields sync × architecture × compression, every member as its example shows it."""
    examples = {axis: [m.example or m.name for m in catalogue(axis).values()] for axis in FAMILIES}
    for sync, architecture, compression in itertools.product(
        examples["sync"], examples["architecture"], examples["compression"]
    ):
        try:
            Plan.parse(f"{sync}/{architecture}/{compression}")
            refusal = None
        except PlanError as error:
            refusal = str(error)
        yield Combination(sync=sync, architecture=architecture, compression=compression, refusal=refusal)


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
    for name in GRAPHS:
        yield "architecture", f"gossip:{name}"


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
    _print_policies()


def _print_policies() -> None:
    """Prints how many compressions each policy takes over each architecture, and why some take none."""
    cases = list(legality())
    architectures = list(dict.fromkeys(case.architecture for case in cases))
    table = Table("sync", *architectures, title="when × who: by how many compressions")
    table.columns[0].no_wrap = True
    reasons: dict[str, list[str]] = {}
    for sync in dict.fromkeys(case.sync for case in cases):
        cells = []
        for architecture in architectures:
            mine = [case for case in cases if (case.sync, case.architecture) == (sync, architecture)]
            legal = sum(case.refusal is None for case in mine)
            cells.append(f"{legal} of {len(mine)}" if legal else "–")
            if not legal:
                reasons.setdefault(_reason(mine), []).append(sync)
        table.add_row(sync, *cells)
    Console().print(table)
    for reason, syncs in reasons.items():
        typer.echo(f"– {', '.join(syncs)} {reason}")


def _reason(cases: list[Combination]) -> str:
    """Returns why a pair takes nothing, not even no compression; without the name that it begins with."""
    plain = next(case for case in cases if case.compression == "none")
    return str(plain.refusal).partition("\n")[0].partition(" ")[2]
