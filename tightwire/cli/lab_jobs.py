"""`tightwire lab jobs`: several jobs at once on an emulated network, beside what is predicted of them."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import LabError
from tightwire.jobs import read_jobs
from tightwire.lab import Topology
from tightwire.lab.sharing import as_the_lab_runs, run_jobs, shared

MEASURED = ("fair", "tcp", "intensity", "interleaved")


def lab_jobs(
    path: Annotated[
        pathlib.Path, typer.Argument(help="The jobs and their cluster, as for `tightwire jobs`.")
    ],
    only: Annotated[
        list[str] | None,
        typer.Option("--policy", help=f"One of {', '.join(MEASURED)}; repeatable.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(help="Of each job.", min=6)] = 12,
    as_json: JsonOption = False,
) -> None:
    """Run the jobs of a file at once on shared links: emulated compute, real exchanges around a ring.

    Priorities are classes of the kernel's queues at the nodes' uplinks; shifts are obeyed by the workers.

        tightwire lab jobs jobs.yaml --policy fair --policy interleaved
    """
    if unknown := [name for name in only or () if name not in MEASURED]:
        raise LabError(f"--policy {unknown[0]} cannot be measured; these can: {', '.join(MEASURED)}.")
    jobs, cluster = read_jobs(path)
    topology = Topology.of_cluster(cluster)
    told: list[dict[str, Any]] = []
    for name in only or MEASURED:
        predicted = as_the_lab_runs(jobs, name, steps)
        say(f"{name} …", err=True)
        outcomes = {outcome.name: outcome for outcome in predicted.jobs}
        asked = [shared(job, outcomes[job.name]) for job in jobs]
        notes: list[str] = []
        steps_s = run_jobs(topology, asked, steps, notes.append, one_queue=name == "tcp")
        for note in notes:
            say(note, err=True)
        rows = [
            {
                "name": job.name,
                "step_s": steps_s[job.name],
                "alone_s": job.alone_s,
                "slowdown": steps_s[job.name] / job.alone_s,
                "predicted_step_s": outcomes[job.name].step_s,
            }
            for job in jobs
        ]
        told.append({"policy": name, "jobs": rows, "why": predicted.why, "notes": notes})
    if as_json:
        say_json({"policies": told})
        return
    keys = ("alone_s", "step_s", "slowdown", "predicted_step_s")
    cells = [
        (entry["policy"], row["name"], *(f"{row[key]:.3g}" for key in keys))
        for entry in told
        for row in entry["jobs"]
    ]
    print_rows(("policy", "job", "alone s", "step s", "slowdown", "predicted s"), cells, texts=2)
