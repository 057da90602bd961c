"""`tightwire bench goodput`: what an elastic job keeps of its throughput while workers die."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightwire.cli.app import progress
from tightwire.cli.options import JsonOption
from tightwire.cli.pictures import require_picture, write_picture
from tightwire.cli.table import print_rows, say
from tightwire.errors import LabError
from tightwire.files import require_writable

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
    dead_ms: Annotated[
        int,
        typer.Option(
            help="Milliseconds without a beat until the lighthouse takes a worker for dead.", min=200
        ),
    ] = 500,
    seed: Annotated[int, typer.Option(help="Draws the faults.")] = 0,
    page: Annotated[
        pathlib.Path | None,
        typer.Option(help="Write a page (.html) with each plan's timeline here.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Kill, stop and cut off workers of an elastic job, and tell what it keeps of its fault-free throughput.

    Each plan runs three times: without elastic members, with them, and then with faults; torchft's, the second and the
    third time. Compute is emulated, and killed workers start anew from a warm spare, so that one machine stands for
    many: imports and compute take no processor from the others. A gap is a time without a step; after detection, from
    when a member noticed a loss.

        tightwire bench goodput --minutes 5 --page goodput.html

        tightwire bench goodput --plans bsp --faults kill --every 20 --json
    """
    from tightwire.bench import goodput as bench
    from tightwire.bench.goodput_page import timeline
    from tightwire.lab import parse_rate

    require_picture(page, "--page")
    require_writable(page)
    kinds = tuple(kind for kind in bench.KINDS if kind in faults.split())
    if set(faults.split()) - set(bench.KINDS) or not kinds:
        raise LabError(f"--faults {faults!r}: there are {', '.join(bench.KINDS)}, one or more of them.")
    bytes_per_s = parse_rate(rate)
    if bytes_per_s is None:
        raise LabError("--rate none: goodput is measured on lines of a known rate, such as 200mbit.")
    asked = bench.GoodputBench(
        plan="",
        workers=workers,
        rate_bytes_per_s=bytes_per_s,
        seconds=60 * minutes,
        every_s=every,
        kinds=kinds,
        compute_s=compute,
        parameters=parameters,
        deadline_s=deadline,
        dead_ms=dead_ms,
        seed=seed,
    )
    takes_s = bench.takes_s(plans.split(), 60 * minutes)
    some = "1 plan takes" if len(plans.split()) == 1 else f"{len(plans.split())} plans take"
    say(f"{some} about {takes_s / 60:.0f} minutes", err=True)
    kept = []
    for plan in plans.split():
        kept.append(_measured(replace(asked, plan=plan)))
        say(
            f"{plan}: {kept[-1].goodput:.1%} of its fault-free throughput, {kept[-1].faults} faults", err=True
        )
    if page is not None:
        title = f"Goodput: {workers} workers at {rate}, a fault every {every:g} s"
        write_picture(timeline([(one.free, one.faulty) for one in kept], title), page, "--page")
    if as_json:
        typer.echo(json.dumps({"rows": [_row(one) for one in kept]}))
    else:
        _print(kept)


@dataclass(frozen=True)
class GoodputKept:
    """What a plan kept.

    Attributes:
        asked: what was measured.
        static: without elastic members and without faults; None: torchft's.
        free: with elastic members and without faults.
        faulty: with both.
    """

    asked: GoodputBench
    static: GoodputRow | None
    free: GoodputRow
    faulty: GoodputRow

    @property
    def goodput(self) -> float:
        """Steps per second, as a part of those without faults."""
        return self.faulty.steps_per_s / self.free.steps_per_s

    @property
    def faults(self) -> int:
        """How many there were."""
        return len(self.faulty.faults)

    @property
    def processor_cost(self) -> float | None:
        """The processor time that elastic members need more, in steps of those that stay."""
        if self.static is None or self.static.processor_s is None or self.free.processor_s is None:
            return None
        return (self.free.processor_s - self.static.processor_s) * self.static.steps_per_s


def _measured(asked: GoodputBench) -> GoodputKept:
    from tightwire.bench import goodput as bench

    calm = replace(asked, every_s=0.0, seconds=min(bench.CALM_S, asked.seconds))
    minutes = asked.seconds / 60
    with progress(None, f"{asked.plan}: members that stay, elastic ones, and {minutes:g} minutes of faults"):
        static = None if asked.is_torchft else bench.run(replace(calm, elastic=False))
        free = bench.run(calm)
        return GoodputKept(asked, static, free, bench.run(asked, free.usual))


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "plan": lambda row: str(row["plan"]),
    "faults": lambda row: str(row["faults"]),
    "goodput": lambda row: f"{row['goodput']:.1%}",
    "in samples": lambda row: f"{row['goodput_samples']:.1%}",
    "longest gap": lambda row: f"{row['longest_gap_s']:.1f} s",
    "after detection": lambda row: _seconds(row["longest_after_detection_s"]),
    "joiner": lambda row: _seconds(row["joiner_cost_s"]),
    "round": lambda row: _seconds(row["round_s"]),
    "cost without faults": lambda row: _percent(row["elastic_cost"]),
    "of it processor": lambda row: _percent(row["elastic_processor_cost"]),
}


PARTS = ("lost_s", "detection_s", "renewal_s", "repeating_s", "joining_s", "slower_s")


def _print(kept: list[GoodputKept]) -> None:
    rows = [_row(one) for one in kept]
    print_rows(
        tuple(COLUMNS),
        [tuple(cell(row) for cell in COLUMNS.values()) for row in rows],
        caption="Goodput: steps of the job per second over those without faults; in samples: workers' steps. "
        "Joiner: by how much steps that let one in took longer. Cost without faults: of elastic members, in steps, by "
        "the clock, and by the processor time of each worker. Compute is emulated; who is killed starts anew warm.",
    )
    print_rows(
        ("plan", "fault", "seconds", "lost", "detection", "renewal", "repeating", "joins", "slower"),
        [
            (row["plan"], part["fault"], f"{part['seconds']:.0f}", *(f"{part[name]:.2f}" for name in PARTS))
            for row in rows
            for part in row["faulty"]["losses"]
        ],
        caption="Seconds without progress from each fault to the next, by cause: until somebody noticed; until members "
        "were in the next world; until the job stepped again; for those that came; all other steps.",
    )


def _row(kept: GoodputKept) -> dict[str, Any]:
    static, free, found = kept.static, kept.free, kept.faulty
    return {
        "plan": kept.asked.plan,
        "faults": kept.faults,
        "goodput": kept.goodput,
        "goodput_samples": found.samples_per_s / free.samples_per_s,
        "elastic_cost": static and static.steps_per_s / free.steps_per_s - 1,
        "elastic_processor_cost": kept.processor_cost,
        "longest_gap_s": max(found.gaps_s, default=0.0),
        "longest_after_detection_s": max(found.idle_s, default=None),
        "joiner_cost_s": max(found.joins_s, default=None),
        "round_s": kept.asked.steps_per_round / free.steps_per_s,
        "static": static and _told(static),
        "free": _told(free),
        "faulty": _told(found),
    }


def _told(run: GoodputRow) -> dict[str, Any]:
    """Returns a run without its single steps, which only the page shows."""
    told = {key: value for key, value in asdict(run).items() if key != "made"}
    return told | {"losses": [{**asdict(part), "lost_s": part.lost_s} for part in run.losses]}


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:+.2%}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"
