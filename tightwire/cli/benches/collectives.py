"""`tightwire bench collectives`: collective programs beside Gloo's own, and the bound that the wire sets."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tightwire.bench import collectives as collectives_bench
from tightwire.bench.collectives import CollectiveRow, CollectivesBench
from tightwire.bench.programs import split_programs
from tightwire.cli.app import progress
from tightwire.cli.options import HostsOption, JsonOption, RateOption, shaped_rate
from tightwire.cli.table import print_rows, say
from tightwire.units import of_option, parse_bytes, print_bytes

HEAD = ("program", "size", "ms", "range", "bound ms", "ratio", "of own bound")


def collectives(
    workers: HostsOption = 4,
    rate: RateOption = "1gbit",
    sizes: Annotated[
        str, typer.Option(help="Sizes of the averaged buffer, separated by commas: 16KiB,16MiB.")
    ] = "1KiB,4KiB,16KiB,64KiB,1MiB,16MiB,64MiB",
    programs: Annotated[
        str,
        typer.Option(
            help="Programs, separated by commas, written as after allreduce: in a plan. A codec follows a slash, as in "
            "hierarchical/int8. gossip:GRAPH is one round of gossip, gloo is torch.distributed.all_reduce."
        ),
    ] = "gloo,native,ring,recursive-doubling,halving-doubling,direct,double-tree,auto",
    topology: Annotated[
        str,
        typer.Option(
            help="star; or nodes=2x2,inside=2gbit,across=100mbit (2 nodes of 2 workers); or "
            "sites=2x2x1,across=1gbit,between=50mbit (2 sites of 2 nodes of 1 worker)."
        ),
    ] = "star",
    samples: Annotated[int, typer.Option(help="Samples per program and size; the median counts.", min=1)] = 7,
    as_json: JsonOption = False,
) -> None:
    """Time collectives on an emulated cluster, beside Gloo's own and the bound that the wire sets.

    All programs take turns at every size, so that a disturbance of the machine disturbs all of them alike. The
    workers run under SCHED_BATCH: under the default class, a message of some kilobytes measures the scheduler.

        tightwire bench collectives --workers 4 --rate 1gbit

        tightwire bench collectives --sizes 16MB,64MB --programs gloo,ring --json

        tightwire bench collectives --sizes 16MB \\
            --topology nodes=2x2,inside=2gbit,across=100mbit \\
            --programs ring,hierarchical,hierarchical/int8
    """
    asked = CollectivesBench(
        workers=workers,
        rate_bytes_per_s=shaped_rate(rate),
        sizes=tuple(of_option("--sizes", parse_bytes, size) for size in sizes.split(",")),
        programs=split_programs(programs),
        samples=samples,
        topology=topology,
    )
    with progress(asked.num_samples, "the lab starts") as tell:
        rows, about = collectives_bench.measure(asked, on_sample=lambda text: tell(text, 1))
    say(f"bench: {about}", err=True)
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return

    print_rows(HEAD, [cells(row) for row in rows])


def cells(row: CollectiveRow) -> tuple[str, ...]:
    """Returns a row's cells under `HEAD`."""
    return (
        row.program,
        print_bytes(row.bytes),
        f"{row.seconds * 1e3:.2f}",
        f"{row.low_s * 1e3:.2f}–{row.high_s * 1e3:.2f}",
        f"{row.wire_bound_s * 1e3:.2f}",
        f"{row.ratio:.2f}",
        f"{row.own_ratio:.2f}",
    )
