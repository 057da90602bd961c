"""`tightwire study`: an experiment from the literature, re-run here, with its report."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any, cast

import typer

from tightwire import files
from tightwire.cli import equal_time, layers, loss_table, made, seven_methods
from tightwire.cli.app import App, CommandGroup, progress
from tightwire.cli.map import map_
from tightwire.cli.options import JsonOption, shaped_rate
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import LabError
from tightwire.study import rates, report
from tightwire.study.conduct import conduct, wanted
from tightwire.study.results import Results, Trial, Wanted
from tightwire.study.studies import STUDIES, find
from tightwire.study.study import Study, split_names


class Studies(CommandGroup):
    """A command per study, with the options of its kind."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns a study's command.

        Raises:
            LabError: nobody has that name; lists those that exist.
        """
        found = super().get_command(ctx, cmd_name)
        if found is None:
            names = [name for name, command in self.commands.items() if not command.hidden]
            raise LabError(f"there is no study {cmd_name!r}; there are {', '.join(names)}.")
        return found


def study(
    ctx: typer.Context,
    tasks: Annotated[
        str, typer.Option(help="Tasks, separated by commas; all of the study's by default.")
    ] = "",
    scenes: Annotated[
        str, typer.Option(help="Scenes, separated by commas; all of the study's by default.")
    ] = "",
    plans: Annotated[
        str,
        typer.Option(
            help="Plans, separated by spaces; dense is always one of them. The study's own by default."
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(help="Number of seeds, of weights and data.", min=1)] = 3,
    steps: Annotated[
        int | None, typer.Option(help="Steps of each training; the task's own by default.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Rate of each worker's link: 100mbit; the study's own by default. Trials at another rate take the "
            "place of those that are kept: give another --out as well."
        ),
    ] = None,
    time_to_loss: Annotated[
        bool,
        typer.Option("--time-to-loss", help="Measure the time to stock DDP's final metric, on a slow link."),
    ] = False,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="File for the results; results/NAME.json by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train under every plan of a study, and check what the literature says of it.

    Each result is written to the file as it comes: a study that was stopped continues, and no trial is made twice.
    Move the file away to begin anew. The tables and the claims stand beside it, as .md.

        tightwire study compression

        tightwire study compression --plans "topk:0.01+ef int8" \\
            --tasks digits --scenes plain --seeds 1

        tightwire study compression --time-to-loss --rate 100mbit
    """
    whole = _chosen(cast(str, ctx.info_name), time_to_loss)
    chosen = whole.narrowed(
        tasks=split_names(tasks, [task.name for task in whole.tasks]),
        scenes=split_names(scenes, [scene.name for scene in whole.scenes]),
        plans=tuple(plans.split()),
        steps=steps,
        rate_bytes_per_s=None if rate is None else shaped_rate(rate),
    )
    path = out or pathlib.Path("results") / f"{chosen.name}.json"
    made.require_results(path)
    files.make_directory(path.parent)
    files.require_writable(path)
    results = Results.open(path)
    results.about = {"study": chosen.name, "command": made.command(), "machine": made.machine()}
    if chosen.first_seed and seeds == 3:
        seeds = 1
    found = _conduct(chosen, range(chosen.first_seed, chosen.first_seed + seeds), results)
    if chosen.name.endswith(rates.SUFFIX):
        for task, plan in rates.without_rate(chosen, found):
            say(
                f"At none of these rates {plan} learns {task}: none is kept, and it needs other settings.",
                err=True,
            )
        say(f"The best factors of rates are kept in {rates.write(chosen, found)}.", err=True)
    files.write_text(path.with_suffix(".md"), report.markdown(chosen, found))
    if as_json:
        rows = report.rows(chosen, found)
        claims = [{"claim": s, "found": f} for s, f in report.verdicts(chosen, found)]
        say_json({"study": chosen.name, "rows": rows, "claims": claims})
    else:
        _print(chosen, found)
    say(f"Kept in {path} and {path.with_suffix('.md')}", err=True)


def _chosen(name: str, time_to_loss: bool) -> Study:
    chosen = find(name)
    if not time_to_loss:
        return chosen
    if chosen.race is None:
        raise LabError(
            f"study {name} has no race to a loss; {', '.join(s.name for s in STUDIES.values() if s.race)} has."
        )
    return chosen.race


def _conduct(chosen: Study, seeds: range, results: Results) -> Results:
    asked = wanted(chosen, seeds)
    with progress(len(asked), "the workers start") as tell:
        tell("the workers start", len(asked) - len(results.missing(asked)))

        def show(trial: Trial | Wanted) -> None:
            tell(f"{trial.task} {trial.plan} seed {trial.seed}", int(isinstance(trial, Trial)))
            if isinstance(trial, Trial):
                say(_line(trial), err=True)

        return conduct(chosen, seeds, results, show)


def _line(trial: Trial) -> str:
    metric = "diverged" if trial.metric is None else f"{trial.metric:.4f}"
    found = trial.error or f"{metric} in {trial.seconds:.1f} s"
    return f"{trial.task} {trial.plan} seed {trial.seed}: {found}"


def _print(chosen: Study, found: Results) -> None:
    """Prints what the report holds."""
    for title, table in report.tables(chosen, found):
        say(f"{title}", "")
        print_rows(table[0], table[1:])
        typer.echo()
    verdicts: dict[str, list[str]] = {}
    for claim, verdict in report.verdicts(chosen, found):
        verdicts.setdefault(claim, []).append(verdict)
    judged = {c: said for c, said in verdicts.items() if not all(": not measured: " in one for one in said)}
    for claim, said in judged.items():
        say(claim)
        for verdict in said:
            say(f"    {verdict}")
    if more := len(verdicts) - len(judged):
        say(f"Of the literature's claims, {more} are about plans that were not trained here.")


app = App(
    cls=Studies,
    no_args_is_help=True,
    help="""Re-run an experiment from the literature here, and check what the literature says of it.

    tightwire study compression --tasks digits --seeds 1

    tightwire study seven-methods
""",
)
for _study in STUDIES.values():
    app.command(_study.name, short_help=_study.about[0].upper() + _study.about[1:])(study)
    if _study.race is not None:
        app.command(_study.race.name, hidden=True)(study)
app.command(seven_methods.NAME, short_help=seven_methods.ABOUT)(seven_methods.seven_methods)
app.command("race", short_help="Jobs trained for an equal time: DDP, auto, a race, plans by hand")(
    equal_time.race
)
app.command("table", short_help="All methods in one table: loss against bytes and against time")(
    loss_table.table
)
app.command("layers", short_help=layers.ABOUT)(layers.layers)
# It trains nothing; `tightwire map` is where one looks for it.
app.command("map", hidden=True)(map_)
