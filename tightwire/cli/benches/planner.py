"""`tightwire bench planner`: how long planning takes, and how much memory."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from tightwire.cli.app import progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows


def planner(as_json: JsonOption = False) -> None:
    """Time planning: every candidate for ResNet-50 on 8 and 64 workers, and single plans on 1,024, and a sweep.

    The sweep makes 10,000 predictions.

    Each measurement has a process of its own, so that its peak of memory is its own.

        tightwire bench planner

        tightwire bench planner --json
    """
    from tightwire.bench import planner as planner_bench

    with progress(None, "planning"):
        rows = list(planner_bench.measure())
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    head = ("measurement", "workers", "plans", "predicted", "seconds", "cpu s", "peak MB")
    print_rows(
        head,
        [
            (
                row.name,
                str(row.workers),
                str(row.candidates),
                str(row.predicted),
                f"{row.seconds:.2f}",
                f"{row.cpu_s:.2f}",
                f"{row.peak_bytes / 1e6:.0f}",
            )
            for row in rows
        ],
    )
