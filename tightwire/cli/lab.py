"""`tightwire lab`: run any torchrun-style script on a cluster emulated on this machine."""

from __future__ import annotations

import pathlib
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from tightwire.cli.app import App
from tightwire.cli.lab_jobs import lab_jobs
from tightwire.cli.options import JsonOption
from tightwire.cli.table import say, say_json
from tightwire.cluster import Cluster
from tightwire.errors import LabError, UnitError
from tightwire.lab import AddingSwitch, Lab, Result, Slow, Topology, Traffic, parse_rate
from tightwire.units import parse_seconds

ABOUT = """Emulate a cluster on this machine: one network namespace per worker, links shaped by the kernel.

    tightwire lab run --workers 4 --rate 200mbit -- python train.py
"""
app = App(no_args_is_help=True, help=ABOUT)
DEFAULT_RATE = "1gbit"


class ModeChoice(StrEnum):
    """How the lab may be made."""

    AUTO = "auto"
    ROOT = "root"
    USERNS = "userns"
    SHAPED = "shaped"


@app.callback()
def lab() -> None:
    """Keeps `run` a command of its own, also while it is the only one."""


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[
        list[str], typer.Argument(help="Command that every worker runs, after --", show_default=False)
    ],
    workers: Annotated[
        int | None, typer.Option(help="Number of workers; --topology may give it instead.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Rate of each worker's link, in each direction: 200mbit, 25MB/s or none; 1gbit unless told.",
            show_default=False,
        ),
    ] = None,
    topology: Annotated[
        str,
        typer.Option(
            help="star; or nodes=2x2,inside=2gbit,across=100mbit (2 nodes of 2 workers); or "
            "sites=2x2x1,inside=2gbit,across=1gbit,between=50mbit (2 sites of 2 nodes of 1 worker)."
        ),
    ] = "star",
    cluster_file: Annotated[
        pathlib.Path | None,
        typer.Option("--cluster", help="Cluster file to emulate, instead of --topology.", show_default=False),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            help="With --cluster: its rates times this: 0.01 makes 100 Gb/s a line of 1 Gb/s.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        ModeChoice,
        typer.Option(
            help="root, userns: network namespaces. shaped: loopback. auto: the first that works here."
        ),
    ] = ModeChoice.AUTO,
    timeout: Annotated[
        float | None, typer.Option(help="Stop the workers after this many seconds.", show_default=False)
    ] = None,
    grace: Annotated[
        float, typer.Option(help="Seconds until the other workers are stopped after one has failed.", min=0)
    ] = 5.0,
    batch_scheduling: Annotated[
        bool,
        typer.Option(
            "--batch-scheduling/--no-batch-scheduling",
            help="Run the workers under SCHED_BATCH: for measuring messages rather than training.",
        ),
    ] = False,
    slow: Annotated[
        list[str] | None,
        typer.Option(
            help="Slow a worker: 2:3x, 2:3x,random (at random times), 2:3x,emulated (timed waits only). Repeatable.",
            show_default=False,
        ),
    ] = None,
    rate_at: Annotated[
        list[str] | None,
        typer.Option(
            help="Another rate of all workers' links from a time on: 30s=100mbit. Repeatable.",
            show_default=False,
        ),
    ] = None,
    switch: Annotated[
        str,
        typer.Option(
            help="adds: the switch adds for allreduce:in-network; adds,slots=64,slot=64KiB says with what memory.",
            show_default=False,
        ),
    ] = "",
    elastic: Annotated[
        bool,
        typer.Option(
            "--elastic", help="Start killed workers anew; tightwire.init(elastic=True) lets them in again."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a command once per worker, each on a host of its own, as torchrun would.

    RANK, WORLD_SIZE, MASTER_ADDR and the rest are set, so scripts written for torchrun work unchanged. Lines
    of output carry the worker's rank. The exit code is that of the worker that failed first. The hosts reach
    each other and nothing else; when the command ends, or is killed, they are gone.

    Four workers on a slow network:

        tightwire lab run --workers 4 --rate 200mbit -- python train.py

    Two nodes of two workers with a slow line between them:

        tightwire lab run --topology nodes=2x2,across=100mbit -- python train.py

    Two sites of two nodes with a slower line between the sites:

        tightwire lab run --topology sites=2x2x1,across=1gbit,between=50mbit \\
            -- python train.py

    A cluster file, at a hundredth of its rates:

        tightwire lab run --cluster cluster.yaml --scale 0.01 -- python train.py

    A line that slows down on the way, and recovers:

        tightwire lab run --workers 4 --rate-at 60s=100mbit -- python train.py

    A switch that adds up what workers send:

        tightwire lab run --workers 4 --switch adds,slots=64 -- python train.py

    Workers that may be killed, and come back:

        tightwire lab run --workers 4 --elastic -- python examples/elastic.py

    Bytes per worker, as the kernel counted them:

        tightwire lab run --workers 2 --json -- python train.py | tail -n 1
    """
    try:
        shape = _shape(cluster_file, scale, topology, workers, rate)
        slowed = [Slow.parse(one) for one in slow or ()]
        changes = [_rate_at(text) for text in rate_at or ()]
        adder = AddingSwitch.parse(switch) if switch else None
        with Lab(
            shape,
            mode=mode.value,
            batch_scheduling=batch_scheduling,
            grace_s=grace,
            slow=slowed,
            switch=adder,
        ) as cluster:
            say(f"lab: {cluster.describe()}", err=True)
            result = cluster.run(command, timeout_s=timeout, elastic=elastic, rates_at=changes)
            summary = _summary(cluster, result, cluster.traffic())
    except KeyboardInterrupt as interrupt:
        say("lab: interrupted; all workers have ended.", err=True)
        raise typer.Exit(130) from interrupt
    say(f"lab: {result.describe()}", err=True)
    if as_json:
        say_json(summary)
    raise typer.Exit(result.exit_code)


def _rate_at(text: str) -> tuple[float, float]:
    """Reads a time, and the rate that links have from then on.

    >>> _rate_at("30s=100mbit")
    (30.0, 12500000.0)

    Raises:
        LabError: neither.
    """
    at, _, rate = text.partition("=")
    try:
        at_s, bytes_per_s = parse_seconds(at), parse_rate(rate)
    except UnitError as error:
        raise LabError(f"--rate-at {text}: {error}. Write for example 30s=100mbit.") from None
    if bytes_per_s is None:
        raise LabError(f"--rate-at {text}: a link that is shaped stays so; write a rate, as in 30s=100mbit.")
    return at_s, bytes_per_s


def _shape(
    cluster_file: pathlib.Path | None,
    scale: float | None,
    topology: str,
    workers: int | None,
    rate: str | None,
) -> Topology:
    """Returns what is to be emulated: a cluster of a file at a scale, or a topology.

    Raises:
        LabError: both are given, what goes with the other one, or one that cannot be emulated.
        FileError: a cluster file that cannot be read.
    """
    if cluster_file is None:
        if scale is not None:
            raise LabError(
                f"--scale {scale:g} is of a cluster file: write --cluster FILE, or --rate instead."
            )
        return Topology.parse(topology, workers, parse_rate(DEFAULT_RATE if rate is None else rate))
    if workers is not None or topology != "star" or rate is not None:
        raise LabError(
            "--cluster FILE says workers, topology and rates; leave out --workers, --topology and --rate (--scale "
            "makes its rates smaller)."
        )
    return Topology.of_cluster(Cluster.read(cluster_file), 1.0 if scale is None else scale)


def _summary(cluster: Lab, result: Result, traffic: tuple[Traffic, ...]) -> dict[str, Any]:
    """What `--json` prints; the lists of bytes are empty where the kernel does not count per worker."""
    return {
        "mode": cluster.mode,
        "workers": cluster.topology.workers,
        "topology": str(cluster.topology),
        "rate_bytes_per_s": cluster.topology.rate_bytes_per_s,
        "exit_code": result.exit_code,
        **asdict(result),
        "tx_bytes": [link.tx_bytes for link in traffic],
        "rx_bytes": [link.rx_bytes for link in traffic],
        "dropped": [link.dropped for link in traffic],
    }


app.command("jobs")(lab_jobs)
