"""`tightwire warm`: kernels compiled before a run has to wait for them."""

from __future__ import annotations

from typing import Annotated

import typer

from tightwire.bench.kernels import default_kernels
from tightwire.cli.app import App, progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import say, say_json
from tightwire.errors import LabError

app = App()


@app.command()
def warm(
    codecs: Annotated[str, typer.Option(help="Codecs, separated by spaces; all of them by default.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, or both where both are, by default.")] = "",
    dtypes: Annotated[str, typer.Option(help="Of gradients, separated by commas.")] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Compile the kernels of codecs and keep them on disk, so that no training run waits for that.

    Run it once per machine, or per image that containers are made from.

    tightwire warm

    tightwire warm --codecs "int8 topk:0.01" --dtypes float32,bfloat16
    """
    import torch

    from tightwire.buckets import dtype_named
    from tightwire.catalogue import parse_member
    from tightwire.compression import Codec, compile_kernels
    from tightwire.devices import DEVICES

    if device not in ("", "cpu", "cuda"):
        raise LabError(
            f"there are kernels for cpu and cuda, and none for {device}: give --device one of those."
        )
    has_cuda = DEVICES["cuda"].count() > 0
    if device == "cuda" and not has_cuda:
        raise LabError(
            f"torch {torch.__version__} sees no CUDA device here: run this where there is one, or leave out --device."
        )
    kinds = [device] if device else ["cpu", *(["cuda"] if has_cuda else [])]
    members = [parse_member("compression", text) for text in codecs.split() or default_kernels()]
    todo = [
        (member, dtype.strip(), kind)
        for member in members
        if isinstance(member, Codec)
        for dtype in dtypes.split(",")
        for kind in kinds
    ]
    rows: list[dict[str, object]] = []
    with progress(len(todo), "the compiler starts") as tell:
        for member, dtype, kind in todo:
            tell(f"{member}, {dtype}, {kind}", 1)
            took_s = compile_kernels(member, dtype_named(dtype), torch.device(kind))
            rows.append({"codec": str(member), "dtype": dtype, "device": kind, "seconds": took_s})
    if as_json:
        say_json({"rows": rows})
        return
    total_s = sum(float(str(row["seconds"])) for row in rows)
    say(
        f"{len(rows)} codecs are compiled for {' and '.join(kinds)}, or were on disk already ({total_s:.1f} s)."
    )
