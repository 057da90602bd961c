"""`tightwire methods`: every member, where it comes from, and what it may be combined with."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from tightwire.answers import ArchitectureAnswer, Axis, CompressionAnswer, Member, ScheduleAnswer, text_with
from tightwire.architecture import PROGRAMS
from tightwire.architecture.allreduce.switched import SWITCHED, SWITCHED_PAPER, SWITCHED_TITLE
from tightwire.architecture.gossip import GRAPHS, METHODS
from tightwire.averaging import AveragingMethod
from tightwire.catalogue import FAMILIES, arguments, catalogue, near, parse_compression
from tightwire.cli import codec_laws
from tightwire.cli.app import App
from tightwire.cli.options import JsonOption
from tightwire.cli.table import entries, lay_out, say, say_json, width_of, wrapped
from tightwire.compression import Codec, Recipe
from tightwire.errors import PlanError
from tightwire.plan import Plan

app = App()


@app.command()
def methods(
    names: Annotated[
        list[str] | None, typer.Argument(help="Methods to show in full.", show_default=False)
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Show what may be combined with what.")] = False,
    rates: Annotated[
        bool, typer.Option("--rates", help="Show how fast each method is proven to converge.")
    ] = False,
    check: Annotated[
        str,
        typer.Option(
            "--check",
            help="Hold a codec to the laws of codecs: its text in plans, or FILE.py:CLASS.",
            metavar="CODEC",
            show_default=False,
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """List every method: what it does, its paper, and what it may be combined with.

    tightwire methods

    tightwire methods diloco topk

    tightwire methods --matrix

    tightwire methods --rates

    tightwire methods --check my_codec.py:Halves

    tightwire methods --json | tail -n 1
    """
    if check:
        codec_laws.check(check, as_json=as_json)
        return
    rows = list(describe())
    if unknown := sorted(set(names or ()) - {row["name"] for row in rows}):
        raise PlanError(f"{unknown[0]!r} is no method; {near(unknown[0], [row['name'] for row in rows])}")
    chosen = [row for row in rows if not names or row["name"] in names]
    if as_json:
        cases = [asdict(case) for case in legality()]
        say_json({"methods": [_flat(row) for row in chosen], "legality": cases})
        return
    width = width_of(sys.stdout)
    if rates:
        _print_rates(chosen, width)
    elif matrix:
        _print_matrix(rows, width)
        _print_policies(width)
    elif names:
        for row in chosen:
            _print_one(row, width)
    else:
        _print(rows, width)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"combines_with": [text for texts in row["combines_with"].values() for text in texts]}


def describe() -> Iterator[dict[str, Any]]:
    """Yields every member, program and graph, with the texts on other axes that it goes with, by axis."""
    for axis in FAMILIES:
        for name, member in catalogue(axis).items():
            row = _row(axis, name, member.title, member.paper, member.example or name, arguments(member))
            yield row | {"rate": proven(member), "promise": member.promise, "seen": member.seen or NO_STUDY}
        for name, recipe in PROGRAMS.items() if axis == "architecture" else ():
            row = _row(axis, f"allreduce:{name}", recipe.title, recipe.paper, f"allreduce:{name}", [])
            yield row | {"rate": EXACT}
        if axis == "architecture":
            text = f"allreduce:{SWITCHED}"
            yield _row(axis, text, SWITCHED_TITLE, SWITCHED_PAPER, text, []) | {"rate": EXACT}
        for name, graph in GRAPHS.items() if axis == "architecture" else ():
            row = _row(axis, f"gossip:{name}", graph.title, graph.paper, f"gossip:{name}", [])
            yield row | {"rate": "that of the method that gossips over it, by its gap ρ"}
        for name, method in METHODS.items() if axis == "architecture" else ():
            row = _row(axis, f"gossip:{name}", method.title, method.paper, f"gossip:{name}", [])
            yield row | {"rate": UNKNOWN if method.proven is None else asdict(method.proven)}


# What is said of methods without a rate of their own.
EXACT = "that of the rest of the plan: the mean is exact"
UNKNOWN = "none known that applies"
# What is said of what no study was made of.
NO_STUDY = "No study shows it."


def proven(member: type[Member]) -> dict[str, str] | str:
    """Returns how fast a member is proven to converge, or why there is nothing to say."""
    if member.proven is not None:
        return asdict(member.proven)
    if issubclass(member, ScheduleAnswer):
        return "that of the rest of the plan: an order changes no step"
    if issubclass(member, ArchitectureAnswer):
        return "that of the method, see gossip:NAME" if member.name == "gossip" else EXACT
    if issubclass(member, CompressionAnswer) and member.lossless is True:
        return EXACT
    if issubclass(member, Recipe):
        stages = parse_compression(member.example or member.name)
        proofs = [stage.name for stage in stages if stage.proven is not None]
        return f"that of {' and '.join(proofs)}" if proofs else UNKNOWN
    if issubclass(member, Codec | AveragingMethod) and not member.unbiased and not member.votes:
        return "none alone; with feedback that of ef, by what it keeps of a gradient's squared norm"
    return UNKNOWN


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


def _row(axis: Axis, name: str, title: str, paper: str, text: str, taken: list[str]) -> dict[str, Any]:
    partners: dict[Axis, list[str]] = {other: [] for other in FAMILIES if other != axis}
    base = _base({axis: text})
    for other, partner in _texts():
        if other != axis and any(_is_legal({**answers, other: partner}) for answers in ({axis: text}, base)):
            partners[other].append(partner)
    return {
        "name": name,
        "axis": axis,
        "title": title,
        "paper": paper,
        "arguments": taken,
        "combines_with": partners,
    }


def _texts() -> Iterator[tuple[Axis, str]]:
    for axis in FAMILIES:
        for name, member in catalogue(axis).items():
            yield axis, member.example or name
    for name in (*PROGRAMS, SWITCHED):
        yield "architecture", f"allreduce:{name}"
    for name in GRAPHS:
        yield "architecture", f"gossip:{name}"


def _base(answers: dict[Axis, str]) -> dict[Axis, str]:
    """Returns the answers with one more where they need it beside bsp over all-reduce, as ssp needs servers."""
    if _is_legal(answers):
        return answers
    more = ({other: partner, **answers} for other, partner in _texts())
    return next(filter(_is_legal, more), answers)


def _is_legal(answers: dict[Axis, str]) -> bool:
    try:
        Plan.parse(text_with(Plan.parse("bsp"), **answers))
    except PlanError:
        return False
    return True


AXES: dict[Axis, str] = {
    "sync": "when do replicas agree?",
    "architecture": "who talks to whom?",
    "compression": "what is sent?",
    "schedule": "in which order?",
}


def _print(rows: list[dict[str, Any]], width: int | None) -> None:
    for axis, question in AXES.items():
        say(f"{axis}: {question}")
        listed = [(row["name"], [row["title"]]) for row in rows if row["axis"] == axis]
        for line in entries(listed, width):
            typer.echo(line)
        typer.echo()
    for line in wrapped(
        "A plan is sync/architecture/compression/schedule: bsp/allreduce:ring/int8+ef/fusion:4MiB. "
        "`tightwire methods NAME` shows a method's arguments, its paper and what it goes with; "
        "`tightwire methods --matrix` shows which compressions each architecture carries.",
        width,
    ):
        typer.echo(line)


def _print_one(row: dict[str, Any], width: int | None) -> None:
    say(f"{row['name']} ({row['axis']}: {AXES[row['axis']]})")
    partners = [
        (f"with {axis}", [", ".join(row["combines_with"][axis]) or "nothing"])
        for axis in AXES
        if axis in row["combines_with"]
    ]
    said = [("what it does", [row["title"]]), ("arguments", row["arguments"]), ("paper", [row["paper"]])]
    if isinstance(row["rate"], str):
        said.append(("rate", [row["rate"]]))
    else:
        said += [
            (f"rate: {what}".replace("rate: bound", "rate").replace("_", "-"), [text])
            for what, text in row["rate"].items()
        ]
    if row.get("promise"):
        said += [("its paper claims", [row["promise"]]), ("studies here", [row["seen"]])]
    for line in entries([*said, *partners], width):
        typer.echo(line)


def _print_rates(rows: list[dict[str, Any]], width: int | None) -> None:
    say("How fast each method is proven to converge; T counts steps, n workers.", "")
    for axis, question in AXES.items():
        say(f"{axis}: {question}")
        for row in (row for row in rows if row["axis"] == axis):
            rate = row["rate"]
            said = (
                [rate]
                if isinstance(rate, str)
                else [
                    f"{rate['bound']}; speed-up: {rate['speed_up']}; assumes: {rate['assumes']}; {rate['paper']}"
                ]
            )
            for line in entries([(row["name"], said)], width):
                typer.echo(line)
        typer.echo()


def _print_matrix(rows: list[dict[str, Any]], width: int | None) -> None:
    """Prints which compression each architecture carries, in as many blocks of columns as there is need for."""
    carriers = [row for row in rows if row["axis"] == "architecture"]
    texts = [text for axis, text in _texts() if axis == "compression"]
    column = max(map(len, texts)) + 2
    room = len(carriers) if width is None else max(1, (width - column) // 3)
    for number, carrier in enumerate(carriers, start=1):
        typer.echo(f"{number:>3} {carrier['name']}")
    for start in range(0, len(carriers), room):
        block = carriers[start : start + room]
        numbers = "".join(f"{start + i + 1:>3}" for i in range(len(block)))
        typer.echo(f"\n{'':<{column}}{numbers}")
        for text in texts:
            marks = "".join("  ●" if text in row["combines_with"]["compression"] else "  ·" for row in block)
            typer.echo(f"{text:<{column}}{marks}")


def _print_policies(width: int | None) -> None:
    """Prints how many compressions each policy takes over each architecture, and why some take none."""
    cases = list(legality())
    architectures = list(dict.fromkeys(case.architecture for case in cases))
    rows = []
    reasons: dict[str, list[str]] = {}
    for sync in dict.fromkeys(case.sync for case in cases):
        cells = []
        for architecture in architectures:
            mine = [case for case in cases if (case.sync, case.architecture) == (sync, architecture)]
            legal = sum(case.refusal is None for case in mine)
            cells.append(f"{legal} of {len(mine)}" if legal else "–")
            if not legal:
                reasons.setdefault(_reason(mine), []).append(sync)
        rows.append((sync, *cells))
    say("", "Number of compressions that each policy takes over each architecture:", "")
    for line in lay_out(("sync", *architectures), rows, width=width):
        typer.echo(line)
    for reason, syncs in reasons.items():
        for line in wrapped(f"– {', '.join(syncs)} {reason}", width):
            typer.echo(line)


def _reason(cases: list[Combination]) -> str:
    """Returns why a pair takes nothing, not even no compression; without the name that it begins with."""
    plain = next(case for case in cases if case.compression == "none")
    return str(plain.refusal).partition("\n")[0].partition(" ")[2]
