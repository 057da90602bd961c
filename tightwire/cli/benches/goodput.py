"""`tightwire bench goodput`: what an elastic job keeps of its throughput while workers die."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightwire.cli.app import progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say
from tightwire.errors import LabError

if TYPE_CHECKING:
    from tightwire.bench.goodput import GoodputBench, GoodputRow


def goodput(
    plans: Annotated[
        str, typer.Option(help="Plans, separated by spaces; torchft:diloco:30 is torchft's own.")
    ] = "diloco:30 torchft:diloco:30 local:8 bsp",
    minutes: Annotated[float, typer.Option(help="Of faults, for each plan.")] = 2.0,
    every: Annotated[float, typer.Option(help="Seconds between faults.", min=1)] = 30.0,
    faults: Annotated[
        str, typer.Option(help="Kinds of faults that are drawn from: kill, freeze, cut.")
    ] = "kill freeze cut",
    workers: Annotated[int, typer.Option(help="On hosts of the lab.", min=2)] = 8,
    rate: Annotated[str, typer.Option(help="Of each worker's line.")] = "200mbit",
    compute: Annotated[float, typer.Option(help="Seconds of emulated compute per step.", min=0)] = 0.1,
    parameters: Annotated[int, typer.Option(help="Of the model.", min=1)] = 500_000,
    deadline: Annotated[float, typer.Option(help="Seconds for which a worker may be silent.", min=1)] = 4.0,
    seed: Annotated[int, typer.Option(help="Draws the faults.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Kill, stop and cut off workers of an elastic job, and tell what it keeps of its fault-free throughput.

    Each plan runs three times: without elastic members, with them, and then with faults; torchft's, the second and the
    third time. Compute is emulated, and killed workers start anew from a warm spare, so that one machine stands for
    many: imports and compute take no processor from the others. A gap is a time without a step; after detection, from
    when a member noticed a loss.

        tightwire bench goodput --minutes 5

        tightwire bench goodput --plans bsp --faults kill --every 20 --json
    """
    from tightwire.bench import goodput as bench
    from tightwire.lab import parse_rate

    kinds = tuple(kind for kind in bench.KINDS if kind in faults.split())
    if set(faults.split()) - set(bench.KINDS) or not kinds:
        raise LabError(f"--faults {faults!r}: there are {', '.join(bench.KINDS)}, one or more of them.")
    bytes_per_s = parse_rate(rate)
    if bytes_per_s is None:
        raise LabError("--rate none: goodput is measured on lines of a known rate, such as 200mbit.")
    takes_s = bench.takes_s(plans.split(), 60 * minutes)
    say(f"{len(plans.split())} plans take about {takes_s / 60:.0f} minutes", err=True)
    rows: list[dict[str, Any]] = []
    for plan in plans.split():
        asked = bench.GoodputBench(
            plan=plan,
            workers=workers,
            rate_bytes_per_s=bytes_per_s,
            seconds=60 * minutes,
            every_s=every,
            kinds=kinds,
            compute_s=compute,
            parameters=parameters,
            deadline_s=deadline,
            seed=seed,
        )
        calm = replace(asked, every_s=0.0, seconds=min(bench.CALM_S, 60 * minutes))
        with progress(None, f"{plan}: members that stay, elastic ones, and {minutes:g} minutes of faults"):
            static = None if asked.is_torchft else bench.run(replace(calm, elastic=False))
            free = bench.run(calm)
            found = bench.run(asked)
        rows.append(_row(asked, static, free, found))
        say(
            f"{plan}: {rows[-1]['goodput']:.1%} of its fault-free throughput, {len(found.faults)} faults",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps({"rows": rows}))
        return
    print_rows(
        (
            "plan",
            "faults",
            "goodput",
            "in samples",
            "longest gap",
            "after detection",
            "joiner",
            "round",
            "cost without faults",
            "of it processor",
        ),
        [
            (
                row["plan"],
                str(row["faults"]),
                f"{row['goodput']:.1%}",
                f"{row['goodput_samples']:.1%}",
                f"{row['longest_gap_s']:.1f} s",
                _seconds(row["longest_after_detection_s"]),
                _seconds(row["joiner_cost_s"]),
                _seconds(row["round_s"]),
                _percent(row["elastic_cost"]),
                _percent(row["elastic_processor_cost"]),
            )
            for row in rows
        ],
        caption="Goodput: steps of the job per second over those without faults; in samples: workers' steps. "
        "Joiner: by how much a step that let one in took longer. Cost without faults: of elastic members, in steps, by "
        "the clock, and by the processor time of each worker. Compute is emulated; who is killed starts anew warm.",
    )


def _row(
    asked: GoodputBench, static: GoodputRow | None, free: GoodputRow, found: GoodputRow
) -> dict[str, Any]:
    return {
        "plan": asked.plan,
        "faults": len(found.faults),
        "goodput": found.steps_per_s / free.steps_per_s,
        "goodput_samples": found.samples_per_s / free.samples_per_s,
        "elastic_cost": static and static.steps_per_s / free.steps_per_s - 1,
        "elastic_processor_cost": _processor_cost(static, free),
        "longest_gap_s": max(found.gaps_s, default=0.0),
        "longest_after_detection_s": max(found.idle_s, default=None),
        "joiner_cost_s": max(found.joins_s, default=None),
        "round_s": asked.steps_per_round / free.steps_per_s,
        "static": static and asdict(static),
        "free": asdict(free),
        "faulty": asdict(found),
    }


def _processor_cost(static: GoodputRow | None, free: GoodputRow) -> float | None:
    """Returns the processor time that elastic members need more, in steps of those that stay."""
    if static is None or static.processor_s is None or free.processor_s is None:
        return None
    return (free.processor_s - static.processor_s) * static.steps_per_s


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:+.2%}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"
