"""Starts real worker processes on loopback, quickly, with a rendezvous port that no other test can take."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

PRELUDE = """
import json, os, signal, sys, threading, time
from datetime import timedelta
import torch, torch.distributed as dist
import tightwire.transport as transport
torch.set_num_threads(1)
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
def answer(value):
    print("ANSWER " + json.dumps(value), flush=True)
"""

# Rank 0 lets the kernel choose the port and keeps the socket: nobody can take it in between.
RENDEZVOUS = """
def rendezvous(path=os.environ["TIGHTWIRE_TEST_PORT_FILE"]):
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)
        with open(path + ".tmp", "w") as file:
            file.write(str(store.port))
        os.rename(path + ".tmp", path)
        return store
    while not os.path.exists(path):
        time.sleep(0.005)
    with open(path) as file:
        port = int(file.read())
    return dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=60), wait_for_workers=False)
"""

JOIN = """
store = rendezvous()
dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
"""


@dataclass(frozen=True)
class Ended:
    """How one worker process ended.

    Attributes:
        code: exit code; negative is the signal that ended it.
        out: standard output.
        err: standard error.
        answer: what the script passed to `answer(value)` last (through JSON), or None.
        seconds: how long it lived.
    """

    code: int
    out: str
    err: str
    answer: Any
    seconds: float


def run_processes(
    num_workers: int,
    script: str,
    *,
    ranks: Sequence[int] | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 180.0,
    check: bool = True,
    join: bool = True,
    full_exit: bool = False,
    preload: Sequence[str] = (),
) -> list[Ended]:
    """Runs `script` in one process per rank over Gloo on loopback; returns how each ended, in order.

    The script finds `torch`, `dist` (initialised unless `join` is false), `transport` (tightwire.transport),
    `rank`, `size`, `json`, `os`, `signal`, `sys`, `threading`, `time`, `rendezvous()` and `answer(value)`.
    All processes are gone when this returns.

    Args:
        num_workers: WORLD_SIZE.
        script: Python text; indentation common to all lines is removed.
        ranks: the ranks to start (default all): leave one out to play a worker that never joins.
        env: more environment variables.
        timeout_s: after it all are killed (code −9); no test should come near it, also on a busy machine.
        check: whether a non-zero exit code is an AssertionError with that worker's standard error.
        join: whether to initialise torch.distributed first.
        preload: modules that take long to import and are not in nursery.py, to be imported once and not by each worker.
        full_exit: whether a worker that succeeds also tears the interpreter down (one that fails always does).
    """
    ranks = list(ranks or range(num_workers))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.py"
        path.write_text(PRELUDE + RENDEZVOUS + (JOIN if join else "") + textwrap.dedent(script))
        settings = {
            "WORLD_SIZE": str(num_workers),
            "LOCAL_WORLD_SIZE": str(num_workers),
            "GLOO_SOCKET_IFNAME": "lo",
            "TIGHTWIRE_TEST_PORT_FILE": f"{folder}/port",
            **(env or {}),
        }
        job = {
            "ranks": ranks,
            "script": str(path),
            "folder": folder,
            "env": settings,
            "timeout_s": timeout_s,
            "full_exit": full_exit,
            "preload": list(preload),
        }
        codes = _ask(job)
        ended = [_ended(Path(folder), rank, *codes[str(rank)]) for rank in ranks]
    if check:
        for rank, end in zip(ranks, ended, strict=True):
            assert end.code == 0, f"rank {rank} ended with {end.code}:\n{end.out}\n{end.err}"
    return ended


@functools.cache
def _nursery() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", str(ROOT / "tests" / "nursery.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    atexit.register(process.communicate)
    return process


def _ask(job: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    nursery = _nursery()
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(json.dumps(job) + "\n")
    nursery.stdin.flush()
    line = nursery.stdout.readline()
    assert line, f"the nursery of test workers ended with {nursery.wait()}"
    answers: dict[str, tuple[int, float]] = json.loads(line)
    return answers


def _ended(folder: Path, rank: int, code: int, seconds: float) -> Ended:
    out, err = (folder / f"out{rank}").read_text(), (folder / f"err{rank}").read_text()
    answers = [line.removeprefix("ANSWER ") for line in out.splitlines() if line.startswith("ANSWER ")]
    return Ended(int(code), out, err, json.loads(answers[-1]) if answers else None, seconds)
