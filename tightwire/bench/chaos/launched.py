"""Trials under torchrun, whose agent is killed: workers must finish without it, and leave nothing behind."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict

from tightwire.bench.chaos.arena import (
    LOOK_S,
    MORE_S,
    START_S,
    Ending,
    ended,
    environment_of,
    left_behind,
    struck_at,
)
from tightwire.bench.chaos.worker import STRIKE_ME, ChaosTrial


def run_under_torchrun(trial: ChaosTrial) -> Ending:
    """Starts the workers by torchrun, kills its agent when the victim says so, and waits until all have ended."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tightwire-chaos-"))
    told = {
        k: v
        for k, v in environment_of(trial.workers).items()
        if k in ("GLOO_SOCKET_IFNAME", "TIGHTWIRE_SECRET")
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", str(trial.workers), "-m", "tightwire.bench.chaos.worker"]
    began_s = time.monotonic()
    try:
        with (folder / "out").open("wb") as out:
            agent = subprocess.Popen(
                [*launch, json.dumps(asdict(trial)), str(folder)],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | told,
            )
        try:
            limit_s = began_s + START_S
            while time.monotonic() < limit_s and agent.poll() is None:
                if STRIKE_ME in (folder / "out").read_text(errors="replace"):
                    agent.kill()
                time.sleep(LOOK_S)
            limit_s = time.monotonic() + trial.steps * trial.takes_s + 2.5 * trial.deadline_s + MORE_S
            workers = {rank: _pid(folder, rank) for rank in range(trial.workers)}
            while time.monotonic() < limit_s and any(map(_is_there, workers.values())):
                time.sleep(LOOK_S)
        finally:
            agent.kill()
            agent.wait()
        hanging = {rank for rank, pid in workers.items() if _is_there(pid)}
        for rank in hanging:
            with suppress(ProcessLookupError):
                os.kill(workers[rank], signal.SIGKILL)
        seconds = time.monotonic() - began_s
        wrote = {rank: (folder / f"end{rank}.json").exists() for rank in workers}
        endings = [
            ended(folder, rank, None if rank in hanging or not wrote[rank] else 0, seconds)
            for rank in workers
        ]
        leftovers = tuple(f"process {pid}" for pid in left_behind(folder))
        return Ending(workers=tuple(endings), leftovers=leftovers, struck_s=struck_at(folder))
    finally:
        for pid in left_behind(folder, wait_s=0.0):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _pid(folder: pathlib.Path, rank: int) -> int:
    """Returns the process of a worker, 0 if it has not begun."""
    path = folder / f"started{rank}"
    return int(path.read_text(encoding="utf-8")) if path.exists() else 0


def _is_there(pid: int) -> bool:
    try:
        return bool(pid) and "Z" not in pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return False
