"""`tightwire bench step`: a training step under every schedule, beside stock DDP and the bound."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tightwire.bench import real_step
from tightwire.bench import step as step_bench
from tightwire.bench.step import StepBench, StepRow
from tightwire.cli.app import progress
from tightwire.cli.options import HostsOption, JsonOption, RateOption, shaped_rate
from tightwire.cli.table import print_rows, say
from tightwire.errors import LabError
from tightwire.units import of_option, parse_bytes, parse_seconds
from tightwire.workloads.emulated import DTYPES, Workload, shaped_like, uniform


def step(
    workers: HostsOption = 4,
    rate: RateOption = "1gbit",
    layers: Annotated[int, typer.Option(help="Number of equal layers, of one tensor each.", min=1)] = 24,
    layer_bytes: Annotated[str, typer.Option(help="Size of each layer: 4MB, 1MiB.")] = "4MiB",
    compute: Annotated[
        str, typer.Option(help="Emulated compute of a step, a third of it forward: 300ms.")
    ] = "1s",
    workload: Annotated[
        str,
        typer.Option(
            help="Tensor lists of known models, scaled, separated by commas, instead of equal layers: resnet50,vgg16."
        ),
    ] = "",
    wire_over_compute: Annotated[
        str,
        typer.Option(
            help="With --workload: the time that the wire is busy, over the time of compute; separated by commas."
        ),
    ] = "1.2",
    real: Annotated[
        bool,
        typer.Option("--real", help="Compute for real: train the tour's transformer, one core per worker."),
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="With --real: of parameters and gradients, float32 or bfloat16.")
    ] = "float32",
    plans: Annotated[
        str,
        typer.Option(
            help="Plans, separated by spaces, and ddp or ddp:bucket_mb=4; by default stock DDP and every schedule."
        ),
    ] = "",
    steps: Annotated[
        int, typer.Option(help="Steps per plan, after warming up; the median counts.", min=1)
    ] = 8,
    as_json: JsonOption = False,
) -> None:
    """Time a training step under stock DDP with several bucket sizes and under every schedule, in one run.

    Compute is emulated by timed waits that release the processor, as on an accelerator, and the workers run under
    SCHED_BATCH, as if each had a processor of its own. The bound is max(compute, wire), where wire is the time in
    which a link carries what an all-reduce must send.

        tightwire bench step --rate 1gbit --layers 24 --layer-bytes 4MiB

        tightwire bench step --workload resnet50,vgg16 \\
            --wire-over-compute 0.5,1,2 --plans "ddp bsp/allreduce/none/auto"

    With --real every worker computes on a core, under the machine's default scheduling. The bound's compute is then a
    step of all workers at once without exchange, measured first in the same processes.

        tightwire bench step --real --workers 2 --rate 500mbit

        tightwire bench step --real --rate 200mbit --dtype bfloat16 \\
            --plans "bsp/allreduce/none bsp/allreduce/entropy"
    """
    if dtype not in DTYPES:
        raise LabError(f"--dtype {dtype}: write {' or '.join(DTYPES)}.")
    if dtype != "float32" and not real:
        raise LabError(f"--dtype {dtype} is of a model that is trained: add --real.")
    if real and workload:
        raise LabError(f"--real trains the tour's transformer, not {workload}: leave out one of the two.")
    texts = tuple(plans.split()) or (real_step.PLANS if real else step_bench.default_plans())
    rate_bytes_per_s = shaped_rate(rate)
    compute_s = of_option("--compute", parse_seconds, compute)
    if real:
        loads = [real_step.workload(dtype)]
    elif workload:
        loads = list(_known(workload, wire_over_compute, compute_s, workers, rate_bytes_per_s))
    else:
        loads = [uniform(layers, of_option("--layer-bytes", parse_bytes, layer_bytes), compute_s)]
    asked = [
        StepBench(workers=workers, rate_bytes_per_s=rate_bytes_per_s, workload=load, plans=texts, steps=steps)
        for load in loads
    ]
    measure = _with_real_compute if real else _with_emulated_compute
    found = [_measured(bench, measure, err=as_json) for bench in asked]
    if as_json:
        typer.echo(json.dumps({**found[0], "tables": found}))


def _known(
    names: str, ratios: str, compute_s: float, workers: int, rate_bytes_per_s: float
) -> Iterator[Workload]:
    for name in names.split(","):
        for ratio in _ratios(ratios):
            num_bytes = step_bench.bytes_for(ratio * compute_s, workers, rate_bytes_per_s)
            yield shaped_like(name, num_bytes, compute_s)


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise LabError(f"--wire-over-compute {text}: write numbers separated by commas: 0.5,1,2.") from None


Measure = Callable[[StepBench, Callable[[StepRow], None]], tuple[StepBench, list[StepRow], str]]


def _with_emulated_compute(
    bench: StepBench, on_row: Callable[[StepRow], None]
) -> tuple[StepBench, list[StepRow], str]:
    return bench, *step_bench.measure(bench, on_row)


def _with_real_compute(
    bench: StepBench, on_row: Callable[[StepRow], None]
) -> tuple[StepBench, list[StepRow], str]:
    return real_step.measure(bench, on_row)


def _measured(bench: StepBench, measure: Measure, *, err: bool) -> dict[str, Any]:
    """Measures one workload and prints its table; returns what `--json` says of it."""
    name = bench.workload.name
    with progress(len(bench.plans), f"{name}: the lab starts") as show:

        def tell(row: StepRow) -> None:
            line = f"{name}: {row.plan} {row.step_s:.3f} s"
            show(line, 1)
            if not sys.stderr.isatty():  # a bar is nothing to read in a log
                typer.echo(line, err=True)

        bench, rows, about = measure(bench, tell)
    say(f"bench: {about}", err=True)
    _print_rows(bench, rows, err=err)
    return {
        "workload": name,
        "about": about,
        "bound_s": bench.bound_s,
        "compute_s": bench.workload.compute_s,
        "wire_bound_s": bench.wire_bound_s,
        "order_bound_s": bench.order_bound_s,
        "rows": [asdict(row) for row in rows],
    }


def _print_rows(bench: StepBench, rows: list[StepRow], *, err: bool) -> None:
    best_s = min((row.step_s for row in rows if row.plan.startswith(step_bench.DDP)), default=None)
    print_rows(
        ("plan", "s a step", "range", "of the bound", "faster than DDP"),
        [
            (
                f"{row.plan} → {row.chosen}" if row.chosen else row.plan,
                f"{row.step_s:.3f}",
                f"{row.low_s:.3f}–{row.high_s:.3f}",
                f"{row.ratio:.3f}",
                f"{best_s / row.step_s:.2f} ×" if best_s else "",
            )
            for row in rows
        ],
        caption=f"{bench.workload.name}: compute {bench.workload.compute_s:.3f} s, wire {bench.wire_bound_s:.3f} s, "
        f"bound {bench.bound_s:.3f} s; {bench.order_bound_s:.3f} s where layers are exchanged whole, in their order. "
        "Faster than DDP: than its best bucket size.",
        err=err,
    )
