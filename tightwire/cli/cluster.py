"""`tightwire cluster`: cluster files from known hardware, or from what NVIDIA's tools wrote."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Annotated

import typer

from tightwire import files
from tightwire.architecture import synthesise
from tightwire.architecture.allreduce.builders.synthesis.programs import GOALS
from tightwire.architecture.allreduce.exports import EXPORTS, export
from tightwire.cli.app import App, progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import entries, say, say_json, width_of
from tightwire.cluster import Cluster, require_range
from tightwire.cluster.imports import SOURCES as CLUSTER_SOURCES
from tightwire.cluster.imports import Source, refuse_nodes
from tightwire.cluster.presets import PRESETS, NodePrice, preset
from tightwire.cluster.wiring import wiring_of
from tightwire.errors import FileError
from tightwire.profile.traces import cluster_of_chakra, cluster_of_traces
from tightwire.units import of_option, parse_bytes, print_ms, print_rate

ABOUT = """Write cluster files: of known hardware, or from the files of other tools.

    tightwire cluster hardware

    tightwire cluster new dgx-a100 --nodes 4 --out cluster.yaml
"""
app = App(help=ABOUT, no_args_is_help=True)
OutOption = Annotated[pathlib.Path, typer.Option("--out", help="Cluster file to write.")]
NodesOption = Annotated[int, typer.Option(min=1, max=100_000, help="Number of nodes.")]
MOST_BYTES = 10**15


# Traces need profiles, which come after clusters.
SOURCES = {
    **CLUSTER_SOURCES,
    "chakra": Source(
        what="Chakra execution traces (.et), of all ranks",
        read=lambda paths, nodes: refuse_nodes(cluster_of_chakra(paths), paths, nodes),
        takes_many=True,
    ),
    "torch-traces": Source(
        what="PyTorch profiler traces, of all ranks",
        read=lambda paths, nodes: refuse_nodes(cluster_of_traces(paths), paths, nodes),
        takes_many=True,
    ),
}


@app.command("hardware")
def hardware(as_json: JsonOption = False) -> None:
    """List known hardware, with its source.

    tightwire cluster hardware

    tightwire cluster hardware --json
    """
    if as_json:
        rows = [
            {
                "name": name,
                "title": known.title,
                "source": known.source,
                "price": known.price and dataclasses.asdict(known.price),
            }
            for name, known in PRESETS.items()
        ]
        say_json({"hardware": rows})
        return
    known_ones = [
        (name, [known.title, known.source, *([_price(known.price)] if known.price else [])])
        for name, known in PRESETS.items()
    ]
    for line in entries(known_ones, width_of(sys.stdout)):
        typer.echo(line)


def _price(price: NodePrice) -> str:
    return f"{price.per_hour:g} USD per node and hour ({price.source}, from {price.date})"


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name, as `tightwire cluster hardware` lists it.")],
    nodes: NodesOption = 1,
    out: OutOption = pathlib.Path("cluster.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Write the file of a cluster of known hardware.

    tightwire cluster new dgx-a100 --nodes 4
    """
    files.require_writable(out)
    _write(preset(name, nodes), out, as_json)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help=f"Which tool wrote the files: {', '.join(SOURCES)}.")],
    paths: Annotated[list[pathlib.Path], typer.Argument(help="The file; or files of all ranks.")],
    nodes: NodesOption = 1,
    out: OutOption = pathlib.Path("cluster.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Write a cluster file from what other tools wrote: nccl-tests, NCCL, nvidia-smi, InfraGraph, PyTorch.

    tightwire cluster import nccl-tests all_reduce.txt

    tightwire cluster import nccl-topology topology.xml --nodes 4

    tightwire cluster import torch-traces rank0.json.gz rank1.json.gz
    """
    if source not in SOURCES:
        raise FileError(f"{source!r} is no source that is read; known: {', '.join(SOURCES)}.")
    files.require_writable(out)
    _write(SOURCES[source].cluster(source, paths, nodes), out, as_json)


@app.command("synthesise")
def synthesise_(
    path: Annotated[pathlib.Path, typer.Argument(help="Cluster file with levels or a graph.")],
    goal: Annotated[str, typer.Option(help=f"Goal: one of {', '.join(GOALS)}.")] = GOALS[0],
    size: Annotated[str, typer.Option(help="Size of the buffer, for files that hold sizes: 64MB.")] = "64MB",
    out: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            help="Write the program: .json an MSCCL++ plan, .csv NCCL's tuner, .xml an NCCL graph, .et Chakra traces, "
            "one file per rank. Repeatable.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a collective for the cluster's own links, with a proof of how near it is to the best.

    tightwire cluster synthesise cluster.yaml --out plan.json --out trace.et
    """
    files.require_writable(*(out or ()))
    for file in out or ():
        if file.suffix not in EXPORTS:
            raise FileError(
                f"--out {file}: programs are written as {', '.join(EXPORTS)} (MSCCL++, tuner, graph, Chakra)."
            )
    num_bytes = of_option("--size", parse_bytes, size)
    require_range("--size", num_bytes, 1, MOST_BYTES)
    wiring = wiring_of(Cluster.read(path))
    with progress(None, "making a program"):
        found = synthesise(wiring, goal)
    for file in out or ():
        export(found.program, file, num_bytes)
    program, certificate = found.program, found.certificate
    if as_json:
        told = {
            "goal": goal,
            "ranks": program.num_ranks,
            "chunks": program.num_chunks,
            "transfers": len(program.transfers),
            "seconds": certificate.achieved_s_per_byte * num_bytes,
            "bound_s": certificate.bound_s_per_byte * num_bytes,
            "ratio": certificate.ratio,
        }
        say_json(told)
        return
    say(
        f"{goal} over {program.num_ranks} ranks: {program.num_chunks} chunks, {len(program.transfers)} transfers; "
        f"{size} take {print_ms(certificate.achieved_s_per_byte * num_bytes)} on the busiest link, "
        f"{certificate.ratio:.3f} × the bound that the links' prices prove."
    )


def _write(cluster: Cluster, out: pathlib.Path, as_json: bool) -> None:
    cluster.write(out)
    if as_json:
        say_json(dataclasses.asdict(cluster))
        return
    levels = "".join(
        f"; {level.name}: {level.workers} workers, {print_rate(level.bandwidth_bytes_per_s)} each member"
        for level in cluster.levels
    )
    say(f"{out}: {cluster.workers} workers{levels or '; ' + print_rate(cluster.bandwidth_bytes_per_s)}.")
    for fit in cluster.fits:
        pieces = f"{len(fit.lines)} lines" if fit.lines else "one line"
        guess = " (converted: a guess)" if fit.source == "prior" else ""
        say(
            f"{fit.program}: {pieces} of α + β · size, α {print_ms(fit.alpha_s)} for the smallest; fit error "
            f"{fit.residual:.1%}{guess}: how far measured times lie from the lines, root mean square."
        )
    for note in cluster.notes:
        say(f"Note: {note}")
