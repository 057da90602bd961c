"""`tightwire bench`: measurements against the stock alternative and the physical bound, in one run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tightwire.bench import collectives as collectives_bench
from tightwire.bench import kernels as kernels_bench
from tightwire.bench.collectives import CollectiveRow, CollectivesBench
from tightwire.bench.programs import split_programs
from tightwire.cli.step import step
from tightwire.cli.sync import sync
from tightwire.errors import LabError, TightwireError
from tightwire.lab import parse_rate
from tightwire.units import of_option, parse_bytes, parse_seconds, print_bytes

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command()(step)
app.command()(sync)


@app.callback()
def bench() -> None:
    """Measure against the stock alternative and the physical bound, in one run."""


@app.command()
def collectives(
    workers: Annotated[int, typer.Option(help="Hosts in the emulated cluster.", min=2)] = 4,
    rate: Annotated[str, typer.Option(help="Each host's link, each way: 1gbit, 200mbit, 25MB/s.")] = "1gbit",
    sizes: Annotated[
        str, typer.Option(help="Sizes of the averaged buffer, by comma: 16KiB, 16MiB.")
    ] = "1KiB,4KiB,16KiB,64KiB,1MiB,16MiB,64MiB",
    programs: Annotated[
        str,
        typer.Option(
            help="By comma, as after allreduce: in a plan, a codec after a slash: torus,shape=2x2, hierarchical/int8; "
            "gossip:GRAPH; gloo is stock torch.distributed.all_reduce."
        ),
    ] = "gloo,native,ring,recursive-doubling,halving-doubling,direct,double-tree,auto",
    topology: Annotated[
        str,
        typer.Option(
            help="star, or nodes=2x2,inside=2gbit,across=100mbit: 2 nodes of 2 hosts; "
            "or sites=2x2x1,across=1gbit,between=50mbit: 2 sites of 2 nodes of 1 host."
        ),
    ] = "star",
    samples: Annotated[int, typer.Option(help="Per program and size; the median counts.", min=1)] = 7,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """Time collectives on an emulated cluster, beside Gloo's own and the bound that the wire sets.

    Every program runs at every size, taking turns, so that what disturbs the machine disturbs all alike. The workers
    run under SCHED_BATCH, where one that waits wakes up as if it had a processor of its own; by the default class,
    messages of kilobytes measure the scheduler.

        tightwire bench collectives --workers 4 --rate 1gbit

        tightwire bench collectives --sizes 16MB,64MB --programs gloo,ring --json

        tightwire bench collectives --topology nodes=2x2,inside=2gbit,across=100mbit --sizes 16MB
        --programs ring,ring,order=0-2-1-3,hierarchical,hierarchical/int8
    """
    try:
        rate_bytes_per_s = parse_rate(rate)
        if rate_bytes_per_s is None:
            raise LabError("rate none has no wire bound to compare with: write for example --rate 1gbit.")
        asked = CollectivesBench(
            workers=workers,
            rate_bytes_per_s=rate_bytes_per_s,
            sizes=tuple(map(parse_bytes, sizes.split(","))),
            programs=split_programs(programs),
            samples=samples,
            topology=topology,
        )
        rows, about = _measure_with_progress(asked)
    except (TightwireError, ValueError) as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"bench: {about}", err=True)
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
    else:
        _print_rows(rows)


def _measure_with_progress(asked: CollectivesBench) -> tuple[list[CollectiveRow], str]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("the lab starts", total=asked.num_samples)
        return collectives_bench.measure(
            asked, on_sample=lambda text: progress.update(task, advance=1, description=text)
        )


def _print_rows(rows: list[CollectiveRow]) -> None:
    table = Table("size", "program", "ms", "range", "bound ms", "ratio", "of own bound")
    table.columns[1].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for i, row in enumerate(rows):
        table.add_row(
            print_bytes(row.bytes),
            row.program,
            f"{row.seconds * 1e3:.2f}",
            f"{row.low_s * 1e3:.2f}–{row.high_s * 1e3:.2f}",
            f"{row.wire_bound_s * 1e3:.2f}",
            f"{row.ratio:.2f}",
            f"{row.own_ratio:.2f}",
            end_section=i + 1 < len(rows) and rows[i + 1].bytes != row.bytes,
        )
    Console().print(table)


@app.command()
def kernels(
    sizes: Annotated[str, typer.Option(help="Elements, by comma.")] = "25000000,10000",
    codecs: Annotated[str, typer.Option(help="Codecs, separated by spaces; every one by default.")] = "",
    rounds: Annotated[int, typer.Option(help="Per codec; the median counts.", min=1)] = 9,
    device: Annotated[str, typer.Option(help="cpu, one core of it; or cuda.")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """Time codecs on one core, or on a GPU, beside a copy of the same memory and plain torch.

    tightwire bench kernels

    tightwire bench kernels --device cuda

    tightwire bench kernels --codecs "int8 topk:0.01" --sizes 1000000 --json
    """
    try:
        numels = [int(size) for size in sizes.split(",")]
        texts = tuple(codecs.split()) or kernels_bench.default_kernels()
        with Console(stderr=True).status("the kernels start") as status:
            rows = [
                row
                for numel in numels
                # Small inputs are quick and noisy: more rounds cost nothing.
                for row in kernels_bench.measure(
                    texts, numel, rounds if numel > 10**6 else 10 * rounds, status.update, device
                )
            ]
    except (TightwireError, ValueError) as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
    else:
        _print_kernels(rows)


def _print_kernels(rows: list[kernels_bench.KernelRow]) -> None:
    table = Table("codec", "phase", "elements", "ms", "copy ms", "ratio", "torch ms", "floor ms", "of floor")
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.kernel,
            row.phase,
            f"{row.numel:,}",
            f"{row.seconds * 1e3:.3f}",
            f"{row.memcpy_s * 1e3:.3f}",
            f"{row.ratio:.2f}",
            "" if row.stock_s is None else f"{row.stock_s * 1e3:.3f}",
            "" if row.floor_s is None else f"{row.floor_s * 1e3:.3f}",
            "" if row.floor_ratio is None else f"{row.floor_ratio:.2f}",
        )
    Console().print(table)
    for kernel, floor in {row.kernel: row.floor for row in rows if row.floor}.items():
        typer.echo(f"floor of {kernel}: {floor}")


@app.command()
def overhead(
    samples: Annotated[
        int, typer.Option(help="Steps of each kind, by turns; the median counts.", min=5)
    ] = 200,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """Time what attach costs where it has nothing to do: a world of one, and steps between two exchanges.

    Steps take about 20 ms. Plain and attached steps take turns and must end with the same parameters, to the bit.

        tightwire bench overhead
    """
    from tightwire.bench import overhead as overhead_bench

    found = overhead_bench.measure(samples)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(f"plain step      {found.plain_step_s * 1e3:8.3f} ms")
    typer.echo(
        f"attached step   {found.attached_step_s * 1e3:8.3f} ms   {found.ratio - 1:+.2%} (median of the pairs)"
    )
    typer.echo(f"same parameters {'to the bit' if found.identical else 'NO'}")
    for plan, ratio in found.policy_ratios.items():
        typer.echo(
            f"{plan.replace(str(overhead_bench.FAR), '∞'):<46} {ratio - 1:+.2%} on steps without exchange"
        )
    typer.echo(f"import tightwire adds {found.import_s * 1e3:.0f} ms to import torch")


@app.command()
def server(
    workers: Annotated[int, typer.Option(help="Hosts in the emulated cluster.", min=2)] = 4,
    slow: Annotated[
        str,
        typer.Option(help="Who computes how many times as long: 3:3x, or any:3x for one at a time, drawn."),
    ] = "3:3x",
    rate: Annotated[str, typer.Option(help="Each host's link, each way: 1gbit, 200mbit, 25MB/s.")] = "1gbit",
    plans: Annotated[
        str,
        typer.Option(help="Plans, separated by spaces; the first is what the others are measured against."),
    ] = "bsp/ps ssp:4/ps asp/ps backup:1/ps",
    compute: Annotated[
        str, typer.Option(help="Emulated compute of a step, a third of it forward: 300ms.")
    ] = "60ms",
    seconds: Annotated[float, typer.Option(help="Per plan.", min=0.5)] = 8.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """Count gradients per second where one worker is slow: parameter servers' policies beside waiting for all.

    tightwire bench server --workers 4 --slow 3:3x

    tightwire bench server --slow any:3x --plans "bsp/ps ssp:4/ps asp/ps"
    """
    from tightwire.bench import server as server_bench

    try:
        rate_bytes_per_s = parse_rate(rate)
        whom, _, times = slow.partition(":")
        if rate_bytes_per_s is None:
            raise LabError("a lab has links with a rate: write for example --rate 1gbit.")
        asked = server_bench.ServerBench(
            workers=workers,
            rate_bytes_per_s=rate_bytes_per_s,
            plans=tuple(plans.split()),
            slow_rank=-1 if whom == "any" else int(whom),
            slow_factor=float(times.removesuffix("x")),
            compute_s=of_option("--compute", parse_seconds, compute),
            seconds=seconds,
        )
        with Console(stderr=True).status("the lab starts") as status:
            rows, about = server_bench.measure(asked, status.update)
    except (TightwireError, ValueError) as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"bench: {about}", err=True)
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    table = Table("plan", "gradients/s", "ratio", "steps/s", "ratio", "late", "staleness", "steps of each")
    table.columns[0].no_wrap = True
    for row in rows:
        ages = [age for age, count in sorted(row.staleness.items()) for _ in range(count)]
        table.add_row(
            row.plan,
            f"{row.gradients_per_s:.1f}",
            f"{row.ratio:.2f}",
            f"{row.steps_per_s:.1f}",
            f"{row.steps_ratio:.2f}",
            str(row.late),
            f"{ages[len(ages) // 2]}, at most {ages[-1]}" if ages else "",
            " ".join(map(str, row.steps)),
        )
    Console().print(table)


@app.command()
def planner(
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """Time planning: every candidate for ResNet-50 on 8 and 64 workers, and single plans on 1,024.

    Each case has a process of its own, so that its peak of memory is its own.

        tightwire bench planner
    """
    from tightwire.bench import planner as planner_bench

    with Console(stderr=True).status("planning"):
        rows = list(planner_bench.measure())
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    table = Table("what", "workers", "plans", "predicted", "seconds", "cpu s", "peak MB")
    for column in table.columns[1:]:
        column.no_wrap, column.justify = True, "right"
    for row in rows:
        counts = (str(row.workers), str(row.candidates), str(row.predicted))
        table.add_row(
            row.name, *counts, f"{row.seconds:.2f}", f"{row.cpu_s:.2f}", f"{row.peak_bytes / 1e6:.0f}"
        )
    Console().print(table)
