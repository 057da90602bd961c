"""`tightwire bench gpu`: everything that a GPU has to show, in less than eight minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tightwire import files
from tightwire.cli.app import progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say


def gpu(
    out: Annotated[Path, typer.Option(help="Folder for gpu.json and gpu.md.")] = Path("results"),
    emulate: Annotated[
        bool,
        typer.Option(
            "--emulate", help="Walk the same code on an emulated device, where no GPU is; no speeds."
        ),
    ] = False,
    limit: Annotated[float, typer.Option(help="Seconds for all parts together.", min=1.0)] = 480.0,
    as_json: JsonOption = False,
) -> None:
    """Check and time everything on a GPU: kernels, training on a shared device, overlap, NCCL, memory.

    Needs one CUDA device, no network and no installation: `python -m tightwire bench gpu` from a copied tree, with
    torch (CUDA), triton, numpy, numba, pydantic, PyYAML, typer and rich.

    tightwire bench gpu

    tightwire bench gpu --emulate
    """
    from tightwire.bench import gpu as gpu_bench

    folder = out / "emulated" if emulate else out
    files.make_directory(folder)

    def save(found: dict[str, Any]) -> None:
        files.write_text(folder / "gpu.json", json.dumps(found, indent=1) + "\n")
        files.write_text(folder / "gpu.md", gpu_bench.page(found))

    with progress(None, "the device starts") as tell:
        found = gpu_bench.run(
            emulate=emulate, limit_s=limit, on_part=lambda name: tell(name, 0), on_done=save
        )
    if as_json:
        typer.echo(json.dumps(found))
    else:
        rows = [
            (p["name"], "yes" if p["ok"] else "NO", p["said"], f"{p['seconds']:.0f}") for p in found["parts"]
        ]
        print_rows(("part", "holds", "found", "s"), rows, texts=3)
        say(f"written: {folder / 'gpu.json'} and {folder / 'gpu.md'}")
    if not all(part["ok"] for part in found["parts"]):
        raise typer.Exit(1)
