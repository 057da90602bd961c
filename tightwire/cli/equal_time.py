"""`tightwire study race`: jobs trained for an equal time under stock DDP, plans that are found, and plans by hand."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from tightwire import files
from tightwire.cli import made
from tightwire.cli.options import JsonOption, shaped_rate
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import LabError
from tightwire.plan import Plan
from tightwire.study import equal_time
from tightwire.study.jobs import JOBS
from tightwire.study.timed import TimedTrial
from tightwire.units import print_rate


def race(
    jobs: Annotated[str, typer.Option(help="Jobs, separated by commas; all twelve by default.")] = "",
    rates: Annotated[
        str, typer.Option(help="Rates of each worker's link, separated by commas.")
    ] = "50mbit,200mbit,1gbit",
    contestants: Annotated[
        str,
        typer.Option(
            help="Separated by spaces: ddp, ddp+powersgd:4, auto-lossy, auto-stale, race-lossy, race-stale, or plans."
        ),
    ] = " ".join(equal_time.CONTESTANTS),
    seconds: Annotated[float, typer.Option(help="Seconds of training for each.", min=1.0)] = 40.0,
    seeds: Annotated[int, typer.Option(help="Number of seeds, of weights and data.", min=1)] = 1,
    workers: Annotated[int, typer.Option(help="Number of workers in the emulated cluster.", min=2)] = 4,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="File for the results; results/race.json by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train jobs for an equal time under stock DDP, under plans that are found, and under plans by hand.

    Each result is written to the file as it comes: what was stopped continues, and no trial is made twice. A report
    stands beside it, as .md. All of it takes five hours; twelve jobs at one rate with --seconds 20 and the first six
    contestants, half an hour.

        tightwire study race --jobs lstm --rates 100mbit

        tightwire study race --seconds 20 \\
            --contestants "ddp auto-lossy auto-stale race-stale"
    """
    chosen = [name for name in jobs.split(",") if name] or list(JOBS)
    if unknown := [name for name in chosen if name not in JOBS]:
        raise LabError(f"there is no job {', '.join(unknown)}; there are {', '.join(JOBS)}.")
    who = contestants.split()
    for contestant in who:
        if contestant not in equal_time.CONTESTANTS:
            Plan.parse(contestant)
    wanted = equal_time.asked(chosen, [shaped_rate(r) for r in rates.split(",")], who, seconds, range(seeds))
    path = out or pathlib.Path("results") / f"{equal_time.NAME}.json"
    made.require_results(path)
    files.make_directory(path.parent)
    files.require_writable(path)
    kept = equal_time.Kept(path, workers)
    about = {"command": made.command(), "machine": made.machine()}
    kept.about = {"study": equal_time.NAME, **about}
    missing = len(kept.missing(wanted))
    say(f"{missing} of {len(wanted)} trials are to be made, {seconds:g} s each and more.", err=True)
    rows = equal_time.cells(equal_time.conduct(wanted, workers, kept, _show))
    files.write_text(path.with_suffix(".md"), made.told(equal_time.markdown(rows, workers), **about))
    if as_json:
        say_json({"rows": rows, "verdicts": equal_time.verdicts(rows)})
        return
    for title, cells in equal_time.tables(rows):
        say(title, "")
        print_rows(equal_time.HEAD, cells, texts=3)
        say("")
    say(*equal_time.verdicts(rows))
    say(f"Kept in {path} and {path.with_suffix('.md')}", err=True)


def _show(trial: TimedTrial) -> None:
    loss = "diverged" if trial.loss is None else f"{trial.loss:.4f}"
    found = trial.error or f"{loss} after {trial.steps} steps under {trial.plan}"
    say(f"{trial.job} at {print_rate(trial.rate_bytes_per_s)}, {trial.contestant}: {found}", err=True)
