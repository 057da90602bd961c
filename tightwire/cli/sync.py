"""`tightwire bench sync`: what policies ask of the line at its busiest, and how evenly steps pass under them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from tightwire.bench import sync as sync_bench
from tightwire.bench.sync import SyncBench, SyncRow
from tightwire.errors import LabError, TightwireError
from tightwire.lab import parse_rate
from tightwire.study.report import aligned
from tightwire.units import of_option, parse_bytes, parse_seconds
from tightwire.workloads.emulated import uniform


def sync(
    workers: Annotated[int, typer.Option(help="Hosts in the emulated cluster.", min=2)] = 4,
    rate: Annotated[
        str, typer.Option(help="Each host's link, each way: 1gbit, 200mbit, 25MB/s.")
    ] = "100mbit",
    layers: Annotated[int, typer.Option(help="Equal layers of one tensor each.", min=1)] = 8,
    layer_bytes: Annotated[str, typer.Option(help="Of each layer: 4MB, 1MiB.")] = "256KiB",
    compute: Annotated[
        str, typer.Option(help="Emulated compute of a step, a third of it forward: 300ms.")
    ] = "50ms",
    plans: Annotated[
        str,
        typer.Option(
            help="Separated by spaces; the first besides ddp is whose peak others are held against."
        ),
    ] = " ".join(sync_bench.PLANS),
    rounds: Annotated[int, typer.Option(help="Per plan, after one to warm up.", min=1)] = 4,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """Measure the peak of what policies send, and the jitter of their steps: streaming DiLoCo beside DiLoCo and DDP.

    The peak is the most that a worker sends in a window of H/fragments steps. Streaming is to need at most
    1.2/fragments of DiLoCo's, and to let one step in a hundred take at most 1.2 medians.

        tightwire bench sync

        tightwire bench sync --plans "local:16 local:16/allreduce/none/streaming:2" --rate 1gbit
    """
    try:
        rate_bytes_per_s = parse_rate(rate)
        if rate_bytes_per_s is None:
            raise LabError("a lab has links with a rate: write for example --rate 100mbit.")
        asked = SyncBench(
            workers=workers,
            rate_bytes_per_s=rate_bytes_per_s,
            workload=uniform(
                layers,
                of_option("--layer-bytes", parse_bytes, layer_bytes),
                of_option("--compute", parse_seconds, compute),
            ),
            plans=tuple(plans.split()),
            rounds=rounds,
        )
        with Console(stderr=True).status("the lab starts") as status:
            rows, about = sync_bench.measure(asked, status.update)
    except (TightwireError, ValueError) as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"bench: {about}", err=True)
    if as_json:
        typer.echo(json.dumps({"window_steps": asked.window, "rows": [asdict(row) for row in rows]}))
        return
    _print_rows(asked, rows)


HEAD = (
    "plan",
    "steps/s",
    "p50 ms",
    "p99 ms",
    "p99/p50",
    "kB a step",
    "peak kB",
    "needs Mb/s",
    "of the first's peak",
)


def _print_rows(asked: SyncBench, rows: list[SyncRow]) -> None:
    lines = [
        (
            row.plan,
            f"{row.steps_per_s:.1f}",
            f"{row.p50_s * 1e3:.1f}",
            f"{row.p99_s * 1e3:.1f}",
            f"{row.jitter:.2f}",
            f"{row.bytes_per_step / 1e3:,.0f}",
            f"{row.peak_bytes / 1e3:,.0f}",
            f"{row.needed_bytes_per_s * 8e-6:.1f}",
            "" if row.ratio is None else f"{row.ratio:.3f}",
        )
        for row in rows
    ]
    typer.echo(aligned([HEAD, *lines]))
    typer.echo(
        f"Peak: the most that a worker sends in {asked.window} steps. Needs: that over so many steps of pure compute."
    )
    for row in rows:
        if row.bound is not None and row.ratio is not None:
            typer.echo(
                f"{row.plan}: {row.ratio:.3f} of {asked.reference}'s peak, asked at most {row.bound:.3f}"
                f"{_said(row.ratio <= row.bound)}; p99/p50 {row.jitter:.2f}, asked at most {sync_bench.SLACK:g}"
                f"{_said(row.jitter <= sync_bench.SLACK)}"
            )


def _said(holds: bool) -> str:
    return " (reached)" if holds else " (missed)"


__all__ = ["sync"]
