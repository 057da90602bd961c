"""`tightwire bench scripts`: training scripts as people write them, under plans of every family."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tightwire.bench import scripts as scripts_bench
from tightwire.bench.scripts import PLANS, SCRIPTS, ScriptsBench
from tightwire.cli.app import progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say
from tightwire.errors import PlanError


def scripts(
    names: Annotated[str, typer.Option("--scripts", help="Which, separated by spaces.")] = " ".join(SCRIPTS),
    plans: Annotated[str, typer.Option(help="Plans, separated by spaces.")] = " ".join(PLANS),
    workers: Annotated[int, typer.Option(help="Processes on this machine.", min=2)] = 2,
    as_json: JsonOption = False,
) -> None:
    """Run training scripts as people write them under stock DDP and under plans of every family.

    Lossless plans whose workers step together must end with DDP's parameters; under all others replicas must end equal,
    or the plan is refused in a sentence before anything is trained wrongly. Ends with 1 where one does not.

        tightwire bench scripts

        tightwire bench scripts --scripts "gan sam" --plans "bsp local:2"
    """
    asked = ScriptsBench(scripts=tuple(names.split()), plans=tuple(plans.split()), workers=workers)
    if unknown := [name for name in asked.scripts if name not in SCRIPTS]:
        raise PlanError(f"there is no script {unknown[0]}; there are {', '.join(SCRIPTS)}.")
    with progress(len(asked.scripts) * len(asked.plans), "two processes start") as tell:
        rows = scripts_bench.measure(asked, lambda row: tell(f"{row.script} under {row.plan}", 1))
    found = scripts_bench.summary(rows)
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows], "summary": found}))
    else:
        lines = [(row.script, row.plan, row.verdict, "" if row.why else f"{row.apart:.1e}") for row in rows]
        print_rows(("script", "plan", "verdict", "from DDP"), lines, texts=3)
        say(*(f"{row.script} under {row.plan}: {row.why}" for row in rows if row.why))
        say(", ".join(f"{count} {verdict}" for verdict, count in found.items()))
    if found["wrong"]:
        raise typer.Exit(1)
