"""`tightwire parallel`: how to cut a transformer over a cluster, memory first, then time."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from tightwire import files
from tightwire.cli.app import App, progress
from tightwire.cli.facts import ClusterOption
from tightwire.cli.options import JsonOption
from tightwire.cli.pictures import require_picture, write_picture
from tightwire.cli.plan import AllowChoice
from tightwire.cli.table import print_rows, say, say_json
from tightwire.cluster import Cluster
from tightwire.errors import FileError, PlanError
from tightwire.parallel import Layout, Layouts, parallelise
from tightwire.parallel.candidates import Candidate
from tightwire.parallel.leg import PLAIN
from tightwire.parallel.time import LayerCut
from tightwire.parallel.transformer import SHAPES, transformer
from tightwire.parallel.written import (
    device_mesh,
    link_loads,
    picture,
    placement,
    torchtitan,
    torchtitan_command,
)
from tightwire.profile.devices import DEVICES, device
from tightwire.units import parse_bytes, print_gb

app = App()
MOST_TOKENS = 10**8
COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


@app.command()
def parallel(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(SHAPES)}.", show_default=False)],
    cluster: ClusterOption = None,
    tokens_per_batch: Annotated[str, typer.Option(help="Tokens of one step, over all workers: 4M.")] = "4M",
    seq_len: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a sequence; the model's own by default.",
            show_default=False,
            min=1,
            max=MOST_TOKENS,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory of each device: 80GB; the cluster's by default.", show_default=False),
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option("--device", help=f"Device of each worker: {', '.join(DEVICES)}.", show_default=False),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="This layout and no other: tensor=8,pipeline=4,data=4,shard=zero1.", show_default=False
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of layouts to list.", min=1)] = 10,
    allow: Annotated[
        AllowChoice, typer.Option(help="What the plan between replicas may change about training.")
    ] = AllowChoice.LOSSLESS,
    out: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            help="Write the best layout: .py a torch DeviceMesh, .sh torchtitan's command, .toml for torchtitan before "
            "0.3, .json the ranking, .html a picture of its links. Repeatable.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Cut a transformer over a cluster: data, tensor, sequence, context, pipeline and expert parallelism.

    Every legal product of degrees is checked for memory, then timed on the cluster's links; the leg between replicas
    is handed to the planner.

        tightwire cluster new dgx-h100 --nodes 16

        tightwire parallel llama3-70b --cluster cluster.yaml \\
            --tokens-per-batch 4M --out mesh.py --out titan.sh

        tightwire parallel llama3-8b --cluster cluster.yaml \\
            --layout tensor=8,data=16,shard=zero3
    """
    if cluster is None:
        raise FileError("the cluster is not given: write --cluster FILE; `tightwire cluster new` makes one.")
    for path in out or ():
        if path.suffix not in (*WRITTEN, ".html"):
            raise FileError(
                f"--out {path}: a layout is written as .py (DeviceMesh), .sh or .toml (torchtitan), .json or .html."
            )
        if path.suffix == ".html":
            require_picture(path, "--out")
    files.require_writable(*(out or ()))
    shape = transformer(model)
    if seq_len is not None:
        shape = dataclasses.replace(shape, seq_len=seq_len)
    asked, most_bytes, wire = _count(tokens_per_batch), _bytes(memory), Cluster.read(cluster)
    on, only = device(device_name) if device_name else None, _layout(layout) if layout else None
    with progress(None, "predicting every layout"):
        found = parallelise(
            shape,
            wire,
            tokens_per_batch=asked,
            memory_bytes=most_bytes,
            device=on,
            top=top,
            allow=allow.value,
            layout=only,
        )
    for path in out or ():
        _write(found, model, path)
    if as_json:
        say_json(_plain(found))
        return
    _print(found)


def _plain(found: Layouts) -> dict[str, object]:
    rows = link_loads(_cut(found), found)
    return {
        "ranking": [row.summary() for row in found.ranking],
        "why": list(found.why),
        "considered": found.considered,
        "fitting": found.fitting,
        "links": rows,
    }


def _cut(found: Layouts) -> LayerCut:
    return LayerCut(found.model, found.best.how, found.training, found.devices, found.network)


def _print(found: Layouts) -> None:
    cells = []
    for row in found.ranking:
        low_s, high_s = row.interval_s
        likely = f"{low_s:.3g}–{high_s:.3g} s"
        layout = str(row.how) if row.leg.plan == PLAIN else f"{row.how}; {row.leg.plan}"
        cells.append(
            (layout, f"{row.step_s:.4g} s", likely, print_gb(row.memory.total), f"{row.utilisation:.0%}")
        )
    print_rows(("layout", "step", "likely", "memory", "of peak"), cells)
    for sentence in found.why:
        say(sentence)
    say("", "Who talks (equal letters) among the first ranks:")
    for line in placement(_cut(found), found.best.how.workers):
        say(f"    {line}")
    rows = link_loads(_cut(found), found)
    if rows:
        typer.echo()
        print_rows(
            ("dimension", "link", "ranks", "ranks that share a link"),
            [(load["dimension"], load["link"], str(load["size"]), f"{load['ranks']:g}") for load in rows],
            texts=2,
        )


def _write(found: Layouts, model: str, path: pathlib.Path) -> None:
    if path.suffix == ".html":
        cut = _cut(found)
        write_picture(picture(cut, link_loads(cut, found), found.best.how.workers), path, "--out")
    else:
        files.write_text(path, WRITTEN[path.suffix](found, model))


def _titan(write: Callable[[Candidate, str, int, int], str]) -> Callable[[Layouts, str], str]:
    return lambda found, model: write(found.best, model, found.training.batch, found.model.seq_len)


# What a layout is written as, by the ending of its file, beside a picture as .html.
WRITTEN: Mapping[str, Callable[[Layouts, str], str]] = {
    ".py": lambda found, model: device_mesh(found.best.how),
    ".sh": _titan(torchtitan_command),
    ".toml": _titan(torchtitan),
    ".json": lambda found, model: json.dumps(_plain(found), indent=1) + "\n",
}


def _layout(text: str) -> Layout:
    """Reads degrees; a comma too many is none."""
    fields = [field.strip() for field in text.split(",") if field.strip()]
    if bare := [field for field in fields if "=" not in field]:
        raise FileError(
            f"--layout {text!r}: {bare[0]!r} has no value; write for example tensor=8,pipeline=4,data=4,shard=zero1."
        )
    told = dict(field.partition("=")[::2] for field in fields)
    if len(told) < len(fields):
        raise FileError(f"--layout {text!r} gives one degree twice; which of them is meant?")
    try:
        return Layout.parse(told)
    except PlanError as error:
        raise PlanError(f"--layout {text!r}: {error}") from None


def _count(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGB]?)", text.strip())
    if not match or float(match[1]) == 0:
        raise FileError(
            f"--tokens-per-batch {text!r} is no number of tokens; write for example 4M or 524288."
        )
    return round(float(match[1]) * COUNTS[match[2]])


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise FileError(f"--memory: {error}.") from None
