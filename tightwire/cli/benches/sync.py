"""`tightwire bench sync`: what policies ask of the line at its busiest, and how evenly steps pass under them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tightwire.bench import sync as sync_bench
from tightwire.bench.sync import SyncBench, SyncRow
from tightwire.cli.app import progress
from tightwire.cli.options import HostsOption, JsonOption, RateOption, shaped_rate
from tightwire.cli.table import print_rows, say
from tightwire.units import of_option, parse_bytes, parse_seconds
from tightwire.workloads.emulated import uniform


def sync(
    workers: HostsOption = 4,
    rate: RateOption = "100mbit",
    layers: Annotated[int, typer.Option(help="Number of equal layers, of one tensor each.", min=1)] = 8,
    layer_bytes: Annotated[str, typer.Option(help="Size of each layer: 4MB, 1MiB.")] = "256KiB",
    compute: Annotated[
        str, typer.Option(help="Emulated compute of a step, a third of it forward: 300ms.")
    ] = "50ms",
    plans: Annotated[
        str,
        typer.Option(
            help="Plans, separated by spaces, and ddp; the peaks of the others are compared with the first plan's."
        ),
    ] = " ".join(sync_bench.PLANS),
    rounds: Annotated[int, typer.Option(help="Rounds per plan, after one to warm up.", min=1)] = 4,
    as_json: JsonOption = False,
) -> None:
    """Measure the peak of what policies send, and the jitter of their steps: streaming DiLoCo beside DiLoCo and DDP.

    The peak is the most that a worker sends in a window of H/fragments steps. Streaming should need at most
    1.2/fragments of DiLoCo's peak, and its slowest step in a hundred should take at most 1.2 medians.

        tightwire bench sync

        tightwire bench sync --rate 1gbit \\
            --plans "local:16 local:16/allreduce/none/streaming:2"
    """
    asked = SyncBench(
        workers=workers,
        rate_bytes_per_s=shaped_rate(rate),
        workload=uniform(
            layers,
            of_option("--layer-bytes", parse_bytes, layer_bytes),
            of_option("--compute", parse_seconds, compute),
        ),
        plans=tuple(plans.split()),
        rounds=rounds,
    )
    with progress(len(asked.plans), "the lab starts") as tell:
        rows, about = sync_bench.measure(asked, lambda plan: tell(plan, 1))
    say(f"bench: {about}", err=True)
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
    "KB a step",
    "peak KB",
    "needs Mb/s",
    "of first peak",
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
    print_rows(HEAD, lines)
    say(
        f"Peak: the most that a worker sends in {asked.window} steps. Needs: the rate that carries it in the compute "
        "time of as many steps."
    )
    for row in rows:
        if row.bound is not None and row.ratio is not None:
            say(
                f"{row.plan}: {row.ratio:.3f} of {asked.reference}'s peak, at most {row.bound:.3f} wanted"
                f"{_said(row.ratio <= row.bound)}; p99/p50 {row.jitter:.2f}, at most {sync_bench.SLACK:g} wanted"
                f"{_said(row.jitter <= sync_bench.SLACK)}"
            )


def _said(holds: bool) -> str:
    return " (reached)" if holds else " (missed)"
