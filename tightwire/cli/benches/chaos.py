"""`tightwire bench chaos`: faults at random moments, and everything that happens judged."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Annotated

import typer

from tightwire.bench.chaos import TrialOutcome
from tightwire.cli import made
from tightwire.cli.app import progress
from tightwire.cli.options import JsonOption
from tightwire.cli.pictures import require_picture, write_picture
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import LabError
from tightwire.files import require_writable, write_text


def chaos(
    plans: Annotated[
        str,
        typer.Option(help="Plans, separated by spaces; by default one of every family.", show_default=False),
    ] = "",
    elastic: Annotated[
        str,
        typer.Option(
            help="Plans of elastic jobs, separated by spaces; by default one of every family that can be, where "
            "--plans is not given and torchft is installed.",
            show_default=False,
        ),
    ] = "",
    faults: Annotated[
        str,
        typer.Option(
            help="Kinds of faults, separated by spaces; by default those on this host's loopback.",
            show_default=False,
        ),
    ] = "",
    count: Annotated[int, typer.Option(help="Number of faults, each in a run of its own.", min=1)] = 100,
    minutes: Annotated[
        float | None, typer.Option(help="Begin no other fault after this time.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed that draws which faults come, where and when.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes in each run.", min=2)] = 3,
    deadline: Annotated[float, typer.Option(help="Seconds for which a worker may be silent.", min=1)] = 4.0,
    at_once: Annotated[
        int, typer.Option(help="Runs side by side: most of each is waiting for deadlines.", min=1)
    ] = 1,
    large: Annotated[
        float,
        typer.Option(
            help="Share of runs with a model so large, on lines so slow, that faults fall into messages.",
            min=0,
            max=1,
        ),
    ] = 0.25,
    page: Annotated[
        pathlib.Path | None,
        typer.Option(help="Write a page (.html) with the campaign's timeline here.", show_default=False),
    ] = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Keep the results here, as .json; tables stand beside, as .md.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Break runs at random moments and judge each end: ended in time, the right one named, replicas equal.

    Workers are processes on this host's loopback. A worker is killed, stopped, late, raises, leaves, skips a pass,
    finds the disk full, or has another plan, model or rate than the others. On hosts of the lab, its link is cut,
    half-open, slow or loses packets; under torchrun, the agent is killed: name these by --faults.
    The same seed breaks the same runs at the same steps.

        tightwire bench chaos --count 30

        tightwire bench chaos --plans "bsp local:4" --faults "kill freeze"

        tightwire bench chaos --elastic "local:3@8~bsp auto" --count 30
    """
    from tightwire.bench.chaos import Campaign, run_campaign

    require_picture(page, "--page")
    if out is not None:
        made.require_results(out)
    require_writable(page, out)
    fixed, changing = _plans(plans, elastic)
    asked = Campaign(
        faults=_kinds(faults, has_elastic=bool(changing)),
        count=count,
        seconds=None if minutes is None else 60 * minutes,
        seed=seed,
        workers=workers,
        deadline_s=deadline,
        at_once=at_once,
        large=large,
        plans=fixed,
        elastic=changing,
    )
    if large:
        _say_if_fast()
    with progress(count, "the first run starts") as tell:

        def on_outcome(outcome: TrialOutcome) -> None:
            tell(f"{outcome.trial.label}: {outcome.trial.fault}", 1)
            _say_wrong(outcome)  # at once: who interrupts a long campaign has seen what it found

        outcomes = run_campaign(asked, on_outcome)
    _show(outcomes, seed, page, out, as_json=as_json)
    raise typer.Exit(1 if any(outcome.found for outcome in outcomes) else 0)


def _plans(plans: str, elastic: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the plans of ordinary jobs and those of elastic ones; of neither, one of every family that can be."""
    from tightwire.bench.chaos.faults import ELASTIC, FAMILIES, phases_of

    fixed, changing = tuple(plans.split()), tuple(elastic.split())
    if not fixed and not changing:
        has_lighthouse = importlib.util.find_spec("torchft") is not None
        fixed, changing = tuple(FAMILIES), ELASTIC if has_lighthouse else ()
    for plan in (*fixed, *changing):
        phases_of(plan)
    return fixed, changing


def _kinds(faults: str, *, has_elastic: bool) -> tuple[str, ...]:
    """Returns the kinds of faults; by default those on this host's loopback.

    Raises:
        LabError: one that does not exist.
    """
    from tightwire.bench.chaos import FAULTS
    from tightwire.bench.chaos.faults import LOCAL_FAULTS

    drawn = tuple(kind for kind in LOCAL_FAULTS if FAULTS[kind].strikes != "elastic" or has_elastic)
    kinds = tuple(faults.split()) or drawn
    if unknown := [kind for kind in kinds if kind not in FAULTS]:
        raise LabError(f"--faults {' '.join(unknown)}: no such fault; there are {', '.join(FAULTS)}.")
    return kinds


def _say_if_fast() -> None:
    """Says so where messages cannot be slowed down."""
    from tightwire.bench.chaos.slow import slow_loopback

    with slow_loopback() as is_slow:
        pass
    if not is_slow:
        say(
            "Messages of large models are as fast as this host's loopback, and few faults fall into them: a slow one "
            "takes root and tc.",
            err=True,
        )


def _show(
    outcomes: Sequence[TrialOutcome],
    seed: int,
    page: pathlib.Path | None,
    out: pathlib.Path | None,
    *,
    as_json: bool,
) -> None:
    """Draws the page and keeps the results, where that is asked for, and prints what the campaign found."""
    from tightwire.bench.chaos.campaign import by_plan
    from tightwire.bench.chaos.page import summary, tables, timeline

    found = {"command": made.command(), "machine": made.machine(), "seed": seed, **summary(outcomes)}
    if page is not None:
        title = f"{len(outcomes)} faults, seed {seed}: {len(found['found'])} ended wrong"
        write_picture(timeline(outcomes, title), page, "--page")
    if out is not None:
        write_text(out, json.dumps(found, indent=1) + "\n")
        write_text(out.with_suffix(".md"), made.told(tables(found), found["command"], found["machine"]))
    if as_json:
        say_json(found)
    else:
        cells = [(r.name, str(r.faults), f"{100 * r.goodput:.1f} %", str(r.found)) for r in by_plan(outcomes)]
        print_rows(("plan", "faults", "steps made", "ended wrong"), cells)


def _say_wrong(outcome: TrialOutcome) -> None:
    trial = outcome.trial
    at = f"at step {trial.at_step}" if trial.at_step >= 0 else "at the start"
    at += ", within large messages" if trial.large else ""
    for sentence in outcome.found:
        say(f"{trial.label}, {trial.fault} of rank {trial.victim} {at}: {sentence}", err=True)
