"""A process that has imported torch and Tightwire once and forks workers: they start in milliseconds.

Reads one job a line on standard input and answers with one line; workers.py writes the jobs.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

# All of these for the workers, each of which would take two to four seconds of processor to import them.
import torch._dynamo
import torch.distributed  # noqa: F401

import tightwire._attach
import tightwire.integrations
import tightwire.kernels.cpu
import tightwire.probe
import tightwire.runtime
import tightwire.transport.join  # noqa: F401

PR_SET_PDEATHSIG = 1


def serve() -> dict[str, Any] | None:
    """Runs jobs until standard input ends; returns the part of a job to run in a forked worker, else None."""
    for line in sys.stdin:
        job = json.loads(line)
        for module in job["preload"]:
            importlib.import_module(module)
        workers: dict[int, int] = {}
        for rank in job["ranks"]:
            pid = os.fork()
            if pid == 0:
                return {**job, "rank": rank}
            workers[pid] = rank
        print(json.dumps(watch(workers, job["timeout_s"])), flush=True)
    return None


def watch(workers: dict[int, int], timeout_s: float) -> dict[str, list[float]]:
    """Waits for the workers, kills the rest at the end; returns exit code and seconds lived by rank."""
    began_at = time.monotonic()
    ended: dict[str, list[float]] = {}
    alive = dict(workers)
    killed = False
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        seconds = time.monotonic() - began_at
        if pid:
            ended[str(alive.pop(pid))] = [os.waitstatus_to_exitcode(status), seconds]
        elif not killed and (seconds > timeout_s or all(is_stopped(pid) for pid in alive)):
            killed = True
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        else:
            time.sleep(0.005)
    return ended


def is_stopped(pid: int) -> bool:
    """Tells whether a worker has frozen itself: when only such are left there is nothing to wait for."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def become(job: dict[str, Any]) -> None:
    """Runs the script as this process, which ends as any Python program does, or sooner if all went well."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{job['folder']}/{name}{job['rank']}", os.O_WRONLY | os.O_CREAT, 0o600), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= {"RANK": str(job["rank"]), "LOCAL_RANK": str(job["rank"]), **job["env"]}
    sys.argv = [job["script"]]
    runpy.run_path(job["script"], run_name="__main__")
    if not job["full_exit"]:  # a second of tearing torch down
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


gc.freeze()  # or else every worker would walk all of torch at its end
mine = serve()
if mine is not None:
    become(mine)
