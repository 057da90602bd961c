"""The page that `tightwire validate` keeps beside its numbers: what was predicted, how far off, and how sure it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tightwire.validate.table import Table
from tightwire.validate.utilisation import UTILISATIONS, Need

HEAD = """# Predictions held to measurements

Made by `{command}` on {machine}.

Points that constants were fitted on and points held out are never mixed. *Covered* is the share of measurements
inside the intervals that the predictions stated: they are to hold 80 %. *Regret* is what is lost by
picking what is predicted to be best. The measurements of table `lab` were made by this command, on this machine; those
of all others are figures that others published, with their sources in `tightwire/validate/data/README.md`."""
UTILISATION = """## Bandwidth and utilisation

How many Gb/s between two sites a method needs, each way, so that the devices compute so much of the time: in the terms
of Streaming DiLoCo (arXiv:2501.18512), for models of 1, 10 and 100 billion parameters in float32 whose step takes 0.1,
0.8 and 4.9 s of computing. Predicted, not measured; `tightwire validate --utilisation --plot FILE.html` draws it."""


def markdown(tables: Sequence[Table], needs: Sequence[Need], command: str, machine: str) -> str:
    """Returns the page."""
    head = HEAD.format(command=command, machine=machine)
    parts = [head, _rows(_statistics(tables)), *(_about(table) for table in tables)]
    if needs:
        parts += [UTILISATION, _rows(_needed(needs))]
    return "\n\n".join(parts) + "\n"


def _statistics(tables: Sequence[Table]) -> Iterator[Sequence[str]]:
    yield "table", "points are", "points", "MAPE", "median", "worst", "rank", "regret", "covered"
    for table in tables:
        for row in table.rows():
            shares = ["" if row[key] is None else f"{row[key]:.1%}" for key in ("mape", "median", "worst")]
            rank = "" if row["spearman"] is None else f"{row['spearman']:.2f}"
            more = ["" if row[key] is None else f"{row[key]:.1%}" for key in ("regret", "coverage")]
            kind = "held out" if row["held_out"] else "fitted"
            yield table.name, kind, str(row["points"]), *shares, rank, *more


def _about(table: Table) -> str:
    targets = ", ".join(f"{key} {target:g}" for key, target in table.target.items())
    return f"- **{table.name}**: {table.note} Asked: {targets or 'nothing'}."


def _needed(needs: Sequence[Need]) -> Iterator[Sequence[str]]:
    yield "plan", "model", *(f"{share:.0%}" for share in UTILISATIONS)
    for need in needs:
        yield f"`{need.plan}`", need.model, *("never" if g is None else f"{g:,.3g}" for g in need.gigabits)


def _rows(rows: Iterator[Sequence[str]]) -> str:
    head = next(rows)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
