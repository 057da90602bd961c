"""`tightwire bench soak`: long runs that must not grow."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tightwire.cli.app import progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows


def soak(
    plans: Annotated[
        str,
        typer.Option(help="Plans, separated by spaces; by default one of every family.", show_default=False),
    ] = "",
    steps: Annotated[int, typer.Option(help="Under each plan; 0: none.", min=0)] = 20_000,
    attaches: Annotated[int, typer.Option(help="Of one model, one after another; 0: none.", min=0)] = 200,
    changes: Annotated[int, typer.Option(help="Of the plan of one run; 0: none.", min=0)] = 50,
    workers: Annotated[int, typer.Option(help="Processes in each run.", min=2)] = 2,
    as_json: JsonOption = False,
) -> None:
    """Train for long, attach often and change plans often; tell what processes came to hold meanwhile.

    From the middle of each run to its end, memory may grow by 2 MB and by what PyTorch itself keeps of as many process
    groups (stock, measured in the same run), descriptors and threads not at all. The exit code is 1 if something grew.

        tightwire bench soak

        tightwire bench soak --plans bsp --steps 2000 --attaches 0 --json
    """
    from tightwire.bench import soak as bench
    from tightwire.bench.chaos.faults import FAMILIES

    runs = bench.soaks(
        plans.split() or list(FAMILIES), steps=steps, attaches=attaches, changes=changes, workers=workers
    )
    rows: list[bench.SoakRow] = []
    with progress(len(runs), "the first run starts") as tell:
        for run in runs:
            rows.append(bench.run(run))
            tell(run.plan or run.kind, 1)
    if as_json:
        found = [asdict(row) | {"bytes_each": row.bytes_each, "is_flat": row.is_flat} for row in rows]
        typer.echo(json.dumps({"rows": found}))
    else:
        print_rows(
            ("run", "times", "bytes each", "stock", "objects", "descriptors", "threads", "flat"),
            [
                (
                    row.soak.plan or row.soak.kind,
                    str(row.soak.times),
                    f"{row.bytes_each:.1f}",
                    f"{row.stock_bytes_each:.1f}",
                    f"{row.end.objects - row.middle.objects:+d}",
                    f"{row.end.descriptors - row.middle.descriptors:+d}",
                    f"{row.end.threads - row.middle.threads:+d}",
                    "yes" if row.is_flat else "no",
                )
                for row in rows
            ],
        )
    raise typer.Exit(0 if all(row.is_flat for row in rows) else 1)
