"""`tightwire bench step`: a training step under every schedule, beside stock DDP and the bound."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tightwire.bench import real_step
from tightwire.bench import step as step_bench
from tightwire.bench.step import StepBench, StepRow
from tightwire.errors import LabError, TightwireError
from tightwire.lab import parse_rate
from tightwire.units import of_option, parse_bytes, parse_seconds
from tightwire.workloads.emulated import Workload, shaped_like, uniform


def step(
    workers: Annotated[int, typer.Option(help="Hosts in the emulated cluster.", min=2)] = 4,
    rate: Annotated[str, typer.Option(help="Each host's link, each way: 1gbit, 200mbit, 25MB/s.")] = "1gbit",
    layers: Annotated[int, typer.Option(help="Equal layers of one tensor each.", min=1)] = 24,
    layer_bytes: Annotated[str, typer.Option(help="Of each layer: 4MB, 1MiB.")] = "4MiB",
    compute: Annotated[
        str, typer.Option(help="Emulated compute of a step, a third of it forward: 300ms.")
    ] = "1s",
    workload: Annotated[
        str, typer.Option(help="Real tensor lists, scaled, by comma: resnet50, vgg16, bert-base.")
    ] = "",
    wire_over_compute: Annotated[
        str, typer.Option(help="For these: how long the wire is busy, in computes, by comma.")
    ] = "1.2",
    real: Annotated[
        bool,
        typer.Option("--real", help="Real compute: the tour's transformer, one core per worker; see below."),
    ] = False,
    plans: Annotated[
        str, typer.Option(help="Separated by spaces; ddp, ddp:bucket_mb=4 and plans; a set by default.")
    ] = "",
    steps: Annotated[int, typer.Option(help="Per plan, after warming up; the median counts.", min=1)] = 8,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """Time a training step under stock DDP with several bucket sizes and under every schedule, in one run.

    Compute is emulated by timed waits that release the processor, as on an accelerator, and the workers run under
    SCHED_BATCH, as if each had a processor of its own. The bound is max(compute, wire), the wire's being what a line
    must carry for an all-reduce.

        tightwire bench step --workers 4 --rate 1gbit --layers 24 --layer-bytes 4MiB --compute 1s

        tightwire bench step --workload resnet50,vgg16 --wire-over-compute 0.5,1,2 --plans "ddp bsp/allreduce/none/auto"

    With --real every worker computes on a core, as the machine schedules it by default; what the bound takes as
    compute is a step of all workers at once without exchange, measured first in the same processes.

        tightwire bench step --real --workers 2 --rate 500mbit
    """
    try:
        if real and workload:
            raise LabError(f"--real trains the tour's transformer, not {workload}: leave out one of the two.")
        texts = tuple(plans.split()) or (real_step.PLANS if real else step_bench.default_plans())
        rate_bytes_per_s = parse_rate(rate)
        compute_s = of_option("--compute", parse_seconds, compute)
        if rate_bytes_per_s is None:
            raise LabError("rate none has no wire bound to compare with: write for example --rate 1gbit.")
        asked = [
            StepBench(
                workers=workers, rate_bytes_per_s=rate_bytes_per_s, workload=load, plans=texts, steps=steps
            )
            for load in (
                _known(workload, wire_over_compute, compute_s, workers, rate_bytes_per_s)
                if workload
                else [
                    real_step.workload()
                    if real
                    else uniform(layers, of_option("--layer-bytes", parse_bytes, layer_bytes), compute_s)
                ]
            )
        ]
        found = [_measured(bench, _with_real_compute if real else _with_emulated_compute) for bench in asked]
    except (TightwireError, ValueError) as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps({**found[0], "tables": found}))


def _known(
    names: str, ratios: str, compute_s: float, workers: int, rate_bytes_per_s: float
) -> Iterator[Workload]:
    for name in names.split(","):
        for ratio in map(float, ratios.split(",")):
            num_bytes = step_bench.bytes_for(ratio * compute_s, workers, rate_bytes_per_s)
            yield shaped_like(name, num_bytes, compute_s)


MOST_COLUMNS = 120  # of a table in a log
Measure = Callable[[StepBench, Callable[[StepRow], None]], tuple[StepBench, list[StepRow], str]]


def _with_emulated_compute(
    bench: StepBench, on_row: Callable[[StepRow], None]
) -> tuple[StepBench, list[StepRow], str]:
    return bench, *step_bench.measure(bench, on_row)


def _with_real_compute(
    bench: StepBench, on_row: Callable[[StepRow], None]
) -> tuple[StepBench, list[StepRow], str]:
    return real_step.measure(bench, on_row)


def _measured(bench: StepBench, measure: Measure) -> dict[str, Any]:
    """Measures one workload and prints its table; returns what `--json` says of it."""
    name, console = bench.workload.name, Console(stderr=True)
    with console.status(f"{name}: the lab starts") as status:

        def tell(row: StepRow) -> None:
            line = f"{name}: {row.plan} {row.step_s:.3f} s"
            status.update(line)
            if not console.is_terminal:  # a status is nothing to read in a log
                typer.echo(line, err=True)

        bench, rows, about = measure(bench, tell)
    typer.echo(f"bench: {about}", err=True)
    _print_rows(bench, rows)
    return {
        "workload": name,
        "about": about,
        "bound_s": bench.bound_s,
        "compute_s": bench.workload.compute_s,
        "wire_bound_s": bench.wire_bound_s,
        "order_bound_s": bench.order_bound_s,
        "rows": [asdict(row) for row in rows],
    }


def _print_rows(bench: StepBench, rows: list[StepRow]) -> None:
    table = Table("plan", "s a step", "range", "of the bound", "DDP's best is")
    table.columns[0].overflow = "fold"  # a plan may be longer than a terminal is wide
    for column in table.columns[1:]:
        column.no_wrap, column.justify = True, "right"
    best_s = min((row.step_s for row in rows if row.plan.startswith(step_bench.DDP)), default=None)
    for row in rows:
        table.add_row(
            f"{row.plan} → {row.chosen}" if row.chosen else row.plan,
            f"{row.step_s:.3f}",
            f"{row.low_s:.3f}–{row.high_s:.3f}",
            f"{row.ratio:.3f}",
            f"{best_s / row.step_s:.2f} ×" if best_s else "",
        )
    table.caption = (
        f"{bench.workload.name}: compute {bench.workload.compute_s:.3f} s, wire {bench.wire_bound_s:.3f} s, "
        f"bound {bench.bound_s:.3f} s; as layers are read in their order, {bench.order_bound_s:.3f} s."
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = MOST_COLUMNS
    console.print(table)


__all__ = ["step"]
