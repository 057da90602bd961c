"""`tightwire study table`: all methods of all studies in one table, loss against bytes and against time."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Annotated

import typer

from tightwire import files
from tightwire.cli import made
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import LabError
from tightwire.profile import Profile
from tightwire.study import table as tables
from tightwire.study.conduct import conduct, wanted
from tightwire.study.results import Results, Trial, Wanted
from tightwire.study.studies import find
from tightwire.study.study import Study

STUDIES = "compression,sync,architecture"


def table(
    studies: Annotated[str, typer.Option(help="Studies, separated by commas.")] = STUDIES,
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = "text,images,digits",
    seeds: Annotated[int, typer.Option(help="Number of seeds, of weights and data.", min=1)] = 3,
    kept: Annotated[bool, typer.Option("--kept", help="Tell what is kept, and make no trial.")] = False,
    folder: Annotated[pathlib.Path, typer.Option(help="Of the results.")] = pathlib.Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Tell of every method what it did to the loss, in bytes and in time, at 50 and 200 Mb/s and 1 Gb/s.

    Trials of the studies' plain scenes that are not kept yet are made first, and kept as they come: what was stopped
    goes on. Times are predicted, for measured compute. Writes table.json and table.md.

        tightwire study table

        tightwire study table --kept --tasks text
    """
    path = folder / "table.json"
    files.make_directory(folder)
    files.require_writable(path, path.with_suffix(".md"))
    names = tuple(filter(None, tasks.split(",")))
    found: dict[str, tuple[Study, Results]] = {}
    for name in filter(None, studies.split(",")):
        whole = find(name)
        plain = whole.scenes[0].name
        study = dataclasses.replace(whole.narrowed(tasks=names, scenes=(plain,)), claims=())
        results = Results.open(folder / f"{name}.json")
        asked = wanted(study, range(seeds))
        if not kept:
            results.about = results.about or {
                "study": name,
                "command": made.command(),
                "machine": made.machine(),
            }
            results = conduct(study, range(seeds), results, _show)
        elif not results.only(asked).trials:
            raise LabError(f"nothing of study {name} is kept in {folder}; run it, or leave out --kept.")
        else:
            results = results.only(asked)
        found[name] = (study, results)
    computes = _computes(path, names)
    entries = tables.entries(found, computes)
    about = {"command": made.command(), "machine": made.machine()}
    document = {
        **about,
        "profiles": {name: dataclasses.asdict(profile) for name, profile in computes.items()},
        "rows": tables.rows(entries),
    }
    files.write_text(path, json.dumps(document, indent=1) + "\n")
    files.write_text(path.with_suffix(".md"), made.told(tables.markdown(entries), **about))
    if as_json:
        say_json({"rows": tables.rows(entries)})
    else:
        for task, (head, *cells) in tables.tables(entries):
            say(task, "")
            print_rows(head, cells, texts=2)
            say("")
    say(f"Kept in {path} and {path.with_suffix('.md')}", err=True)


def _computes(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, Profile]:
    """Returns the compute of tasks' models, as it was measured before where it was: the table then stays the same."""
    kept = files.read_json(path).get("profiles", {}) if path.exists() else {}
    known = {name: files.check(kept[name], Profile, str(path)) for name in names if name in kept}
    return known | tables.profiles([name for name in names if name not in known])


def _show(trial: Trial | Wanted) -> None:
    if isinstance(trial, Trial):
        metric = trial.error or ("diverged" if trial.metric is None else f"{trial.metric:.4f}")
        say(f"{trial.task} {trial.plan} seed {trial.seed}: {metric}", err=True)
