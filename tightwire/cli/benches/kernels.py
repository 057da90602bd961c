"""`tightwire bench kernels`: codecs beside a copy of the same memory and plain torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from tightwire.bench import kernels as kernels_bench
from tightwire.bench.kernels import KernelRow
from tightwire.cli.app import progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say
from tightwire.errors import LabError


def kernels(
    sizes: Annotated[
        str, typer.Option(help="Numbers of float32 elements, separated by commas.")
    ] = "25000000,10000",
    codecs: Annotated[str, typer.Option(help="Codecs, separated by spaces; all of them by default.")] = "",
    rounds: Annotated[int, typer.Option(help="Rounds per codec; the median counts.", min=1)] = 9,
    device: Annotated[str, typer.Option(help="cpu (one core of it) or cuda.")] = "cpu",
    compile_only: Annotated[
        bool, typer.Option("--compile-only", help="Compile the kernels for CUDA instead, which needs no GPU.")
    ] = False,
    capabilities: Annotated[
        str, typer.Option(help="Compute capabilities to compile for, separated by commas.")
    ] = "8.0,9.0,10.0",
    as_json: JsonOption = False,
) -> None:
    """Time codecs on one core, or on a GPU, beside a copy of the same memory and plain torch.

    tightwire bench kernels

    tightwire bench kernels --device cuda

    tightwire bench kernels --codecs "int8 topk:0.01" --sizes 1000000 --json

    tightwire bench kernels --compile-only --capabilities 9.0
    """
    if compile_only:
        _compile([_capability(text) for text in capabilities.split(",")], as_json)
        return
    numels = [_count(size) for size in sizes.split(",")]
    texts = tuple(codecs.split()) or kernels_bench.default_kernels()
    with progress(None, "the kernels start") as tell:
        rows = [
            row
            for numel in numels
            # Small inputs are quick and noisy: more rounds cost nothing.
            for row in kernels_bench.measure(
                texts, numel, rounds if numel > 10**6 else 10 * rounds, lambda text: tell(text, 0), device
            )
        ]
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    head = ("codec", "phase", "elements", "ms", "copy ms", "ratio", "torch ms", "floor ms", "of floor")
    print_rows(head, [tuple(_cells(row)) for row in rows], texts=2)
    for kernel, floor in {row.kernel: row.floor for row in rows if row.floor}.items():
        say(f"floor of {kernel}: {floor}")


def _compile(capabilities: list[int], as_json: bool) -> None:
    """Compiles the kernels for CUDA, and prints what each takes of a multiprocessor."""
    with progress(None, "the compiler starts") as tell:
        rows = kernels_bench.compile_only(capabilities, lambda text: tell(text, 0))
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    head = ("kernel", "constants", "capability", "registers", "spilled bytes", "shared bytes")
    cells = [
        (
            r.kernel,
            r.constants,
            f"{r.capability / 10}",
            str(r.registers),
            str(r.spill_bytes),
            str(r.shared_bytes),
        )
        for r in rows
    ]
    print_rows(head, cells, texts=2)


def _capability(text: str) -> int:
    major, _, minor = text.strip().partition(".")
    if not (major.isdigit() and len(minor) == 1 and minor.isdigit()) or int(major) < 8:
        raise LabError(f"--capabilities {text}: write compute capabilities from 8.0 on, such as 8.0,9.0.")
    return 10 * int(major) + int(minor)


def _count(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise LabError(f"--sizes {text}: write numbers of elements above 0, such as 25000000,10000.")
    return int(text)


def _cells(row: KernelRow) -> Iterator[str]:
    yield from (row.kernel, row.phase, f"{row.numel:,}")
    yield f"{row.seconds * 1e3:.3f}"
    yield f"{row.memcpy_s * 1e3:.3f}"
    yield f"{row.ratio:.2f}"
    yield "" if row.stock_s is None else f"{row.stock_s * 1e3:.3f}"
    yield "" if row.floor_s is None else f"{row.floor_s * 1e3:.3f}"
    yield "" if row.floor_ratio is None else f"{row.floor_ratio:.2f}"
