"""Options as nobody means them, for the commands that only compute: each ends well or in one sentence that names them.

    python -m tests.option_fuzzing 5000

tries so many; the suite tries a few (test_fuzzing.py). What takes long when an option is sound is made short: no plan
but plain all-reduce is looked at, and nothing is measured.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import click

from tests.command_line import Ended
from tests.command_line import tightwire as run
from tests.fuzzing import seeds
from tightwire.cli import application
from tightwire.cluster import Cluster
from tightwire.cluster.presets import preset
from tightwire.profile import Profile

MOST_S = 5.0
MOST_LETTERS = 900
ROUND = ("--gradients", "20MB", "--compute", "30ms", "--workers", "4", "--bandwidth", "1gbit")
KNOWN = ("--model", "resnet50", "--device", "a100", "--batch", "32", "--hardware", "aws-p4d:2")
FILES = ("--profile", "profile.yaml", "--cluster", "cluster.yaml")
# What each command is called with; its options are drawn from its own list.
CALLS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("plan", ROUND),
    ("plan", KNOWN),
    ("plan", FILES),
    ("plan", (*ROUND, "--sweep", "bandwidth=1gbit..2gbit")),
    ("simulate", ("bsp", *ROUND)),
    ("simulate", ("local:8", *FILES)),
    ("parallel", ("llama3-8b", "--cluster", "node.yaml", "--tokens-per-batch", "0.25M", "--top", "1")),
    ("jobs", ("jobs.yaml", "--policy", "fair")),
    ("map", ("--out", "map.json")),
    ("profile", ("--model", "resnet50", "--device", "a100")),
    ("profile", ("--trace", "trace")),
    ("validate", ("--only", "programs")),
    ("validate", ("--utilisation",)),
    ("cluster hardware", ()),
    ("cluster new", ("dgx-a100", "--nodes", "2")),
    ("cluster import", ("nccl-tests", "nccl-tests")),
    ("cluster synthesise", ("node.yaml",)),
)
ODD = (
    "", " ", "0", "-0", "-1", "1e300", "-1e300", "1e-300", "nan", "inf", "-inf", "9" * 30, "9" * 5000, "0x10",
    "1_0", "1.5", "true", "none", "é", "١٢", "a,b", "=", ":", "+", "..", "a=b", "x:4", "aws-p4d:0",
    "aws-p4d:1e9", "a100:-1", "a100:0", "a100:2+a100:2", "a100:2,speed=nan", "a100:4,share=0",
    "a100:4,line=0gbit", "0gbit", "-1gbit", "1e300gbit", "infgbit", "0ms", "1e300s", "0B", "0.1B", "9999999TB",
    "bandwidth=1gbit..0gbit", "workers=0..8", "workers=2..1e9", "latency=0s..1s",
    "nodes=0x0,inside=1gbit,across=1gbit", "nodes=2x4,inside=1gbit", "sites=2x2x999999,inside=1gbit", "nowhere",
    "nowhere/x", "folder", "folder/", "binary", "/dev/full", "cluster.yaml", "profile.yaml", "a\0b", "*", "~",
    "--", "tensor=0", "tensor=-1,data=8", "tensor=1e9", "tensor=true", "data=8,data=8", "-", "bfloat16", "cpu",
    "a100",
)  # fmt: skip
JOBS = "cluster: cluster.yaml\njobs:\n- {name: a, workers: [0, 2], compute_s: 0.5, exchange_bytes: 4000000}\n"


def named_files(folder: Path) -> dict[str, bytes]:
    """Returns the files that calls name, as bytes; `folder` is written into on the way."""
    Cluster.uniform(4, 1e9, 1e-5).write(folder / "cluster.yaml")
    preset("dgx-h100", 1).write(folder / "node.yaml")
    Profile.uniform(layers=4, numel_per_layer=10**6, forward_s=0.1, backward_s=0.2).write(
        folder / "profile.yaml"
    )
    written = ("cluster.yaml", "node.yaml", "profile.yaml")
    return {
        **{name: (folder / name).read_bytes() for name in written},
        **{name: data for name, data in seeds(folder).items() if name in ("trace", "nccl-tests")},
        "binary": bytes(range(256)),
        "jobs.yaml": JOBS.encode(),
    }


@contextlib.contextmanager
def made_short() -> Iterator[None]:
    """Leaves out what takes long."""
    with contextlib.ExitStack() as stack:
        for where, value in (
            ("tightwire.planner.search.candidates", lambda *_, **__: ()),
            ("tightwire.planner.search.neighbours", lambda *_, **__: ()),
            ("tightwire.planner.landscape.survey", lambda *_: ()),
            ("tightwire.planner.landscape.lines", lambda *_: ()),
            ("tightwire.planner.landscape.page", lambda *_: ""),
            ("tightwire.planner.landscape.grids", lambda *_: ()),
            ("tightwire.cli.map.picture", lambda *_: ""),
            ("tightwire.validate.utilisation.needs", list),
            ("tightwire.validate.utilisation.plot", str),
        ):
            importlib.import_module(where.rpartition(".")[0])
            stack.enter_context(mock.patch(where, value))
        yield


def options_of(command: str) -> Mapping[str, bool]:
    """Returns a command's options, and whether each takes a value."""
    found: Any = application()
    context = click.Context(found)
    for name in command.split():
        found = found.get_command(context, name)
    return {
        option: not parameter.is_flag
        for parameter in found.params
        if getattr(parameter, "is_flag", None) is not None
        for option in parameter.opts[:1]
    }


def faults(tries: int, seed: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the command line and what happened, for each that did not end as it should.

    Args:
        tries: how many.
        seed: of what is drawn.
        folder: an empty one, which is worked in.
    """
    draw = random.Random(seed)
    files = named_files(folder)
    (folder / "folder").mkdir()
    known = {command: options_of(command) for command, _ in CALLS}
    with made_short(), contextlib.chdir(folder):
        for number in range(tries):
            for name, data in files.items():  # anew, for a command may have written there
                (folder / name).write_bytes(data)
            command, call = CALLS[number % len(CALLS)]
            takes = known[command]
            drawn = draw.sample(sorted(takes), min(len(takes), draw.choice((1, 1, 1, 2))))
            odd = [part for name in drawn for part in ((name, draw.choice(ODD)) if takes[name] else (name,))]
            arguments = (*command.split(), *without(call, drawn), *odd)
            if what := outcome(arguments, drawn):
                yield " ".join(arguments)[:300], what
            for left in folder.rglob("*.part"):
                left.unlink()
                yield " ".join(arguments)[:300], f"left {left.name} behind"


def without(call: tuple[str, ...], drawn: list[str]) -> tuple[str, ...]:
    """Returns a call without the options that are given otherwise, so that each is given once."""
    kept, skip = [], False
    for part in call:
        if skip:
            skip = False
        elif part in drawn:
            skip = part != "--utilisation"
        else:
            kept.append(part)
    return tuple(kept)


def outcome(arguments: tuple[str, ...], drawn: list[str]) -> str | None:
    """Returns what is wrong with how a command ended; None: nothing."""
    began_s = time.process_time()  # a busy machine makes no fault
    try:
        ended = run(*arguments)
    except Exception:
        return traceback.format_exc(limit=-4)
    took_s = time.process_time() - began_s
    if took_s > MOST_S:
        return f"took {took_s:.1f} s"
    return None if ended.code == 0 else said_wrong(ended, drawn)


def said_wrong(ended: Ended, drawn: list[str]) -> str | None:
    """Returns what is wrong with what a command said when it refused: it is one sentence that names an option."""
    said = [line for line in ended.stderr.splitlines() if line.startswith(("tightwire: ", "Error: "))]
    if ended.code != 2 or len(said) != 1:
        return f"code {ended.code}, {len(said)} sentences: {ended.stderr[-600:]!r}"
    if len(said[0]) > MOST_LETTERS and said[0].startswith("tightwire: "):
        return f"a sentence of {len(said[0])} letters: {said[0][:300]!r}"
    return None if any(name in said[0] for name in drawn) else f"names no option: {said[0]!r}"


def main() -> None:
    """Tries as many as asked."""
    tries, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    failed, began_s = 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for line, what in faults(tries, seed, Path(folder)):
            failed += 1
            print(f"{line}\n  {what}", flush=True)
    print(f"{tries} command lines, {failed} faults, {time.perf_counter() - began_s:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    main()
