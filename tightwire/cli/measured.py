"""What `plan` and `simulate` share: measured facts from files or from round numbers, and how rankings print."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Annotated

import typer

from tightwire.cli.table import print_rows
from tightwire.cluster import PAYLOAD_SHARE, Cluster
from tightwire.errors import FileError
from tightwire.profile import Profile
from tightwire.simulate import Prediction
from tightwire.units import of_option, parse_bytes, parse_rate, parse_seconds, print_ms, print_size

ProfileOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--profile",
        help="File of `tightwire profile`; or give --gradients and --compute.",
        show_default=False,
    ),
]
ClusterOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--cluster",
        help="File of `tightwire probe`; or give --workers, --bandwidth, --latency.",
        show_default=False,
    ),
]
GradientsOption = Annotated[
    str | None, typer.Option(help="Size of all gradients of the model: 100MB.", show_default=False)
]
ComputeOption = Annotated[
    str | None, typer.Option(help="Compute of a step, a third of it forward: 300ms.", show_default=False)
]
WorkersOption = Annotated[int | None, typer.Option(help="Number of workers.", show_default=False)]
BandwidthOption = Annotated[
    str | None,
    typer.Option(help="Rate of each worker's link, in each direction: 1gbit, 25MB/s.", show_default=False),
]
LatencyOption = Annotated[str, typer.Option(help="Latency of a message: 50us, 1ms.")]

LAYERS = 48
# Of a table; all are in the JSON.
MOST_ROWS = 12


def read_profile(path: pathlib.Path | None, gradients: str | None, compute: str | None) -> Profile:
    """Returns the profile of a file, or one of equal layers from two round numbers.

    Raises:
        FileError: neither or both are given.
        UnitError: a number that cannot be read.
    """
    if path is not None and gradients is None and compute is None:
        return Profile.read(path)
    if path is not None or gradients is None or compute is None:
        raise FileError(
            "the model is not given: write --profile FILE, or --gradients 100MB and --compute 300ms."
        )
    compute_s = of_option("--compute", parse_seconds, compute)
    num_bytes = of_option("--gradients", parse_bytes, gradients)
    return Profile.uniform(
        layers=LAYERS,
        numel_per_layer=max(1, num_bytes // 4 // LAYERS),
        forward_s=compute_s / 3,
        backward_s=compute_s * 2 / 3,
    )


def read_cluster(
    path: pathlib.Path | None, workers: int | None, bandwidth: str | None, latency: str
) -> Cluster:
    """Returns the cluster of a file, or a uniform one from three round numbers.

    Raises:
        FileError: neither or both are given, or one of them is wrong.
        UnitError: a number that cannot be read.
    """
    if path is not None and workers is None and bandwidth is None:
        return told(Cluster.read(path))
    rate = of_option("--bandwidth", parse_rate, bandwidth) if bandwidth is not None else None
    if path is not None or workers is None or rate is None:
        raise FileError(
            "the cluster is not given: write --cluster FILE, or --workers 4 and --bandwidth 1gbit."
        )
    return Cluster.uniform(workers, rate * PAYLOAD_SHARE, of_option("--latency", parse_seconds, latency))


def told(cluster: Cluster) -> Cluster:
    """Tells what a reader of this cluster must know; returns it."""
    for remark in cluster.remarks:
        typer.echo(f"cluster: {remark}", err=True)
    return cluster


def print_ranking(rows: Sequence[Prediction], why: Sequence[str], as_json: bool) -> None:
    """Prints predictions as a table with sentences, or as one line of JSON."""
    if as_json:
        typer.echo(json.dumps({"ranking": [row.values() for row in rows], "why": list(why)}))
        return
    print_table(rows)
    for sentence in why:
        typer.echo(sentence)


def print_table(rows: Sequence[Prediction], chances: Sequence[float] = ()) -> None:
    """Prints the first predictions as a table.

    Args:
        rows: the chosen one first, if one was chosen.
        chances: of each to be faster than the chosen one, if one was chosen.
    """
    head = ("plan", "step", "from", "to", "exposed", "sent", *(["faster?"] if chances else []), "bound by")
    cells = []
    for place, row in enumerate(rows[:MOST_ROWS]):
        times = map(print_ms, (row.step_s, row.low_s, row.high_s, row.exposed_s))
        sure = [] if not chances else ["chosen" if place == 0 else f"{chances[place]:.0%}"]
        cells.append((str(row.plan), *times, print_size(row.bytes_per_step), *sure, row.bound_by))
    captions = []
    if chances:
        captions.append(
            "Fastest of each kind; faster?: the probability to be truly faster than the chosen plan."
        )
    if len(rows) > MOST_ROWS:
        captions.append(f"{len(rows) - MOST_ROWS} more; --json lists all.")
    print_rows(head, cells, caption=" ".join(captions))
