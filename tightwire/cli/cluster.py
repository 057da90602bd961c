"""`tightwire cluster`: cluster files from known hardware, or from what NVIDIA's tools wrote."""

from __future__ import annotations

import pathlib
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tightwire.cluster import Cluster
from tightwire.cluster.imports import from_nccl_inspector, from_nccl_tests, from_nccl_topology
from tightwire.cluster.presets import PRESETS, preset
from tightwire.profile.traces import cluster_of_traces
from tightwire.units import print_rate

app = typer.Typer(
    help="Cluster files: of known hardware, or imported.", rich_markup_mode=None, no_args_is_help=True
)
OutOption = Annotated[pathlib.Path, typer.Option("--out", help="Where the cluster file goes.")]
NodesOption = Annotated[int, typer.Option(min=1, help="How many nodes.")]


class Source(StrEnum):
    """What wrote a file."""

    TOPOLOGY = "nccl-topology"
    TESTS = "nccl-tests"
    INSPECTOR = "nccl-inspector"
    TRACES = "torch-traces"


@app.command("hardware")
def hardware() -> None:
    """Lists known hardware, with its source."""
    table = Table("name", "nodes of", "source")
    for name, known in PRESETS.items():
        table.add_row(name, known.title, known.source)
    Console().print(table)


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="As in `tightwire cluster hardware`.")],
    nodes: NodesOption = 1,
    out: OutOption = pathlib.Path("cluster.yaml"),
) -> None:
    """Writes the file of a cluster of known hardware."""
    _write(preset(name, nodes), out)


@app.command("import")
def import_(
    source: Annotated[Source, typer.Argument(help="What wrote the files.")],
    paths: Annotated[
        list[pathlib.Path],
        typer.Argument(help="The file; of nccl-inspector and torch-traces, all ranks' files."),
    ],
    nodes: NodesOption = 1,
    out: OutOption = pathlib.Path("cluster.yaml"),
) -> None:
    """Writes a cluster file from NCCL's topology XML, nccl-tests' output, NCCL Inspector's JSON lines or traces."""
    if source is Source.TOPOLOGY:
        _write(from_nccl_topology(paths[0], nodes), out)
    elif source is Source.TESTS:
        _write(from_nccl_tests(paths[0]), out)
    elif source is Source.INSPECTOR:
        _write(from_nccl_inspector(paths), out)
    else:
        _write(cluster_of_traces(paths), out)


def _write(cluster: Cluster, out: pathlib.Path) -> None:
    cluster.write(out)
    levels = "".join(
        f"; {level.name}: {level.workers} workers, {print_rate(level.bandwidth_bytes_per_s)} each member"
        for level in cluster.levels
    )
    typer.echo(
        f"{out}: {cluster.workers} workers{levels or '; ' + print_rate(cluster.bandwidth_bytes_per_s)}."
    )
