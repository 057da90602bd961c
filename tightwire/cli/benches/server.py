"""`tightwire bench server`: parameter servers' policies where one worker is slow."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tightwire.bench.server import ServerRow
from tightwire.cli.app import progress
from tightwire.cli.options import HostsOption, JsonOption, RateOption, shaped_rate
from tightwire.cli.table import print_rows, say
from tightwire.errors import LabError
from tightwire.units import of_option, parse_seconds


def server(
    workers: HostsOption = 4,
    slow: Annotated[
        str,
        typer.Option(
            help="The slow worker, and how many times as long it computes: 3:3x. any:3x slows one worker at a "
            "time, drawn at random."
        ),
    ] = "3:3x",
    rate: RateOption = "1gbit",
    plans: Annotated[
        str,
        typer.Option(help="Plans, separated by spaces; the others are compared with the first."),
    ] = "bsp/ps ssp:4/ps asp/ps backup:1/ps",
    compute: Annotated[
        str, typer.Option(help="Emulated compute of a step, a third of it forward: 300ms.")
    ] = "60ms",
    seconds: Annotated[float, typer.Option(help="Seconds of training per plan.", min=0.5)] = 8.0,
    as_json: JsonOption = False,
) -> None:
    """Count gradients per second where one worker is slow: parameter servers' policies beside waiting for all.

    tightwire bench server --workers 4 --slow 3:3x

    tightwire bench server --slow any:3x --plans "bsp/ps ssp:4/ps asp/ps"
    """
    from tightwire.bench import server as server_bench

    rank, factor = _slow(slow)
    asked = server_bench.ServerBench(
        workers=workers,
        rate_bytes_per_s=shaped_rate(rate),
        plans=tuple(plans.split()),
        slow_rank=rank,
        slow_factor=factor,
        compute_s=of_option("--compute", parse_seconds, compute),
        seconds=seconds,
    )
    with progress(len(asked.plans), "the lab starts") as tell:
        rows, about = server_bench.measure(asked, lambda plan: tell(plan, 1))
    say(f"bench: {about}", err=True)
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    head = ("plan", "gradients/s", "ratio", "steps/s", "ratio", "late", "staleness", "most", "steps of each")
    print_rows(head, [_cells(row) for row in rows])


def _slow(text: str) -> tuple[int, float]:
    """Reads `3:3x` as a rank (−1 for any) and a factor."""
    whom, _, times = text.partition(":")
    try:
        return -1 if whom == "any" else int(whom), float(times.removesuffix("x"))
    except ValueError:
        raise LabError(f"--slow {text}: write a worker and a factor, such as 3:3x, or any:3x.") from None


def _cells(row: ServerRow) -> tuple[str, ...]:
    ages = [age for age, count in sorted(row.staleness.items()) for _ in range(count)]
    return (
        row.plan,
        f"{row.gradients_per_s:.1f}",
        f"{row.ratio:.2f}",
        f"{row.steps_per_s:.1f}",
        f"{row.steps_ratio:.2f}",
        str(row.late),
        str(ages[len(ages) // 2]) if ages else "",
        str(ages[-1]) if ages else "",
        " ".join(map(str, row.steps)),
    )
