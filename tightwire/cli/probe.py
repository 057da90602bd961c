"""`tightwire probe`: measure the wire, inside torchrun or on an emulated cluster."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tightwire import files
from tightwire.architecture import PROGRAMS
from tightwire.cli.app import App
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say, say_json
from tightwire.cluster import Cluster
from tightwire.cluster.imports.measured import NOISY_RESIDUAL
from tightwire.errors import LabError, ProgramError
from tightwire.lab import Lab, OutputLine, Topology, parse_rate
from tightwire.units import print_ms, print_rate

app = App()

Tell = Callable[[float, str], None]


@app.command()
def probe(
    workers: Annotated[
        int | None,
        typer.Option(help="Number of workers to emulate; not inside torchrun.", show_default=False),
    ] = None,
    rate: Annotated[
        str, typer.Option(help="Rate of each emulated link, in each direction: 200mbit, 1gbit or none.")
    ] = "1gbit",
    out: Annotated[pathlib.Path, typer.Option(help="Cluster file to write.")] = pathlib.Path("cluster.yaml"),
    budget: Annotated[float, typer.Option(help="Seconds that it may take, about.", min=0.1, max=600)] = 4.0,
    programs: Annotated[
        str, typer.Option(help=f"Programs to time, separated by commas: {', '.join(PROGRAMS)}.")
    ] = "native,ring,recursive-doubling,allgather",
    as_json: JsonOption = False,
) -> None:
    """Measure latency, bandwidth and collectives between workers; write them for `tightwire plan`.

    On your cluster, with the launcher that you train with:

        torchrun --nnodes 4 ... --no-python tightwire probe

    On an emulated one:

        tightwire probe --workers 4 --rate 200mbit
    """
    is_shown = os.environ.get("RANK", "0") == "0"
    if is_shown:  # other hosts may have no such folder
        files.require_writable(out)
    names = [name.strip() for name in programs.split(",")]
    if unknown := [name for name in names if name not in PROGRAMS]:
        raise ProgramError(f"{', '.join(unknown)} is no known program; known: {', '.join(PROGRAMS)}.")
    if "RANK" not in os.environ and workers is None:
        raise LabError(
            "there are no workers to probe: run it under torchrun, or write --workers 4 --rate 200mbit."
        )
    if str(workers if workers is not None else os.environ.get("WORLD_SIZE")) == "1":
        raise LabError(
            "one worker has no wire to probe: write --workers 2 or more, or give torchrun more processes, on all hosts."
        )
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_shown) as progress:
        task = progress.add_task("the workers start", total=1.0)

        def tell(share: float, what: str) -> None:
            progress.update(task, completed=share, description=what)

        if workers is None:
            found = _probe_here(budget, names, tell)
        else:
            found = _probe_lab(
                Topology(workers=workers, rate_bytes_per_s=parse_rate(rate)), budget, names, tell
            )
    if is_shown:
        found.write(out)
        _print(found, out, as_json)


def _probe_here(budget_s: float, programs: list[str], tell: Tell) -> Cluster:
    from tightwire.probe import probe
    from tightwire.transport import init, shutdown

    cluster = probe(init(), budget_s=budget_s, programs=programs, on_progress=tell)
    shutdown()
    return cluster


def _probe_lab(topology: Topology, budget_s: float, programs: list[str], tell: Tell) -> Cluster:
    found: list[Cluster] = []
    words: list[str] = []

    def on_line(line: OutputLine) -> None:
        words.append(f"[{line.rank}] {line.text}")
        if line.stream != "stdout" or not line.text.startswith("{"):
            return
        event = json.loads(line.text)
        if "cluster" in event:
            found.append(files.check(event["cluster"], Cluster, "what the probe found"))
        else:
            tell(event["share"], event["what"])

    order = json.dumps({"budget_s": budget_s, "programs": programs})
    with Lab(topology) as lab:
        result = lab.run([sys.executable, "-m", "tightwire.probe", order], on_line=on_line)
    if not found:
        last = "\n".join(words[-20:])
        raise LabError(f"the probe failed: {result.describe()}; the workers' last words:\n{last}")
    return found[0]


def _print(cluster: Cluster, out: pathlib.Path, as_json: bool) -> None:
    if as_json:
        say_json(dataclasses.asdict(cluster))
        return
    pairs = [
        (
            f"{pair.workers[0]} – {pair.workers[1]}",
            print_ms(pair.latency_s),
            print_rate(pair.bandwidth_bytes_per_s),
            print_rate(pair.both_ways_bytes_per_s),
        )
        for pair in cluster.pairs
    ]
    print_rows(("workers", "latency", "one way", "both ways"), pairs)
    say("", "Programs: time = α + β · payload sent", "")
    fits = [
        (
            fit.program,
            print_ms(fit.alpha_s),
            print_rate(1 / fit.beta_s_per_byte) if fit.beta_s_per_byte else "–",
            f"{fit.residual:.1%}",
        )
        for fit in cluster.fits
    ]
    print_rows(("program", "α", "1/β", "fit error"), fits)
    say("fit error: how far measured times lie from the line, root mean square; predictions are as far off.")
    if noisy := [fit.program for fit in cluster.fits if fit.residual > NOISY_RESIDUAL]:
        say(
            f"More than {NOISY_RESIDUAL:.0%} for {', '.join(noisy)}: the machine or the network was not quiet. Measure "
            "again, with a larger --budget."
        )
    say(
        f"{cluster.workers} workers, {print_rate(cluster.bandwidth_bytes_per_s)} of payload each way at once, "
        f"{print_ms(cluster.latency_s)} of latency; written to {out}."
    )
