"""Several jobs at once on one emulated network: emulated compute, real exchanges, shifts obeyed by the workers.

The launching half builds the lab; the working half, `python -m tightwire.lab.sharing JSON`, runs on its hosts. A worker
begins its exchanges at its job's phase: at times that are the shift modulo a period, and re-finds it after drift. All
jobs begin at one moment and go on until the slowest has made its steps.
At the nodes' uplinks every job has a class of the kernel's queues: of its priority, or of an equal share; and windows
are kept while a job computes, for the job that began first would be ahead of one whose window has to grow again. Policy
`tcp` does without both. Jobs in one queue are not served fairly: beside a long exchange whose windows fill the queue
(100 ms of it), a short one waits for that queue at every doubling of its own window.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tightwire.errors import LabError
from tightwire.jobs import Job, JobOutcome, PolicyOutcome, policy, predict_jobs
from tightwire.lab.lab import Lab
from tightwire.lab.topology import Topology
from tightwire.transport import Transport

FIRST_PORT = 31_000
# Of the workers' processes: they wait more than they work, and waits must end on time.
PRIORITY = -10
# From the last host's arrival to the first step.
READY_S = 0.5
# A host that comes later than the others by more than this has failed.
ARRIVAL_S = 120.0
# A period longer than a step alone, so that small delays are made up for.
SLACK = 1.03
# An exchange this much of a period late still begins at once; a later one waits for its next turn.
WINDOW = 0.25
SETTLED = 3
# Beside twice the steps of the slowest job alone, so long workers may take to come, and to end.
ENDS_S = 240.0
# Turns missed in a row after which a job keeps its phase no longer.
MOST_MISSED = 4


@dataclass(frozen=True, kw_only=True)
class SharedJob:
    """A job as the lab runs it.

    Attributes:
        name: to tell it apart.
        workers: hosts that it runs on.
        alone_s: a step when nobody else is there.
        compute_s: of a step, emulated.
        exchange_bytes: that its workers average after it.
        shift_s: of its exchanges within a period; None: whenever they are ready.
        period_s: that its turns repeat after.
        priority: of its packets at uplinks, 0 the first; equal shares where none is given.
    """

    name: str
    workers: tuple[int, ...]
    alone_s: float
    compute_s: float
    exchange_bytes: int
    shift_s: float | None = None
    period_s: float = 0.0
    priority: int | None = None


def run_jobs(
    topology: Topology,
    jobs: Sequence[SharedJob],
    steps: int = 12,
    on_note: Callable[[str], None] = lambda text: None,
    *,
    one_queue: bool = False,
) -> dict[str, float]:
    """Runs jobs at once in a lab; returns the mean settled step of each, in seconds, by name.

    Args:
        topology: of the lab.
        jobs: on its hosts.
        steps: of the slowest job, alone; the others go on for as long.
        on_note: called with a sentence where a job could not do as it was told.
        one_queue: whether jobs meet in one queue, as TCP alone would have it.

    Raises:
        LabError: no lab is possible here, or a worker failed.
    """
    alone_s = [job.alone_s for job in jobs]
    asked = json.dumps({"jobs": [vars(job) for job in jobs], "seconds": steps * max(alone_s)})
    found: dict[str, float] = {}

    def on_line(line: Any) -> None:
        if line.text.startswith("{"):
            told = json.loads(line.text)
            found[told["name"]] = told["step_s"]
            if told["parted_at"] is not None:
                on_note(
                    f"job {told['name']} could not keep its phase: it missed {MOST_MISSED} turns in a row, and from "
                    f"step {told['parted_at']} on it exchanges whenever it is ready, as under fair."
                )

    with Lab(topology, keeps_windows=not one_queue) as lab:
        first = {rank: job.priority for job in jobs for rank in job.workers if job.priority is not None}
        if not one_queue:
            places = {rank: number for number, job in enumerate(jobs) for rank in job.workers}
            lab.set_classes(first or places, equal=not first)
        result = lab.run(
            [sys.executable, "-m", "tightwire.lab.sharing", asked],
            on_line=on_line,
            timeout_s=ENDS_S + 2 * steps * max(alone_s),
        )
    if not result.ok or len(found) < len(jobs):
        raise LabError(f"jobs on one network: {result.describe()}")
    return found


def as_the_lab_runs(jobs: Sequence[Job], name: str, steps: int) -> PolicyOutcome:
    """Predicts a policy over as many steps as the lab runs."""
    return predict_jobs(jobs, policy(name), steps=steps + 1, settled=SETTLED)


def shared(job: Job, outcome: JobOutcome) -> SharedJob:
    """Returns a job as the lab runs it, by what a policy gives it.

    Raises:
        LabError: one that exchanges while it computes.
    """
    if job.ready_s < job.compute_s:
        raise LabError(f"job {job.name}: the lab exchanges after compute; leave ready_s out.")
    return SharedJob(
        name=job.name,
        workers=job.workers,
        alone_s=job.alone_s,
        compute_s=job.compute_s,
        exchange_bytes=job.exchange_bytes,
        shift_s=outcome.shift_s,
        period_s=SLACK * (outcome.period_s or 0.0),
        priority=outcome.priority,
    )


def phase_wait_s(now_s: float, shift_s: float, period_s: float) -> float:
    """Returns how long an exchange that is ready now waits for its turn.

    >>> phase_wait_s(10.0, 0.0, 1.0), phase_wait_s(10.1, 0.0, 1.0), round(phase_wait_s(10.5, 0.0, 1.0), 6)
    (0.0, 0.0, 0.5)
    """
    late_s = (now_s - shift_s) % period_s
    return 0.0 if late_s <= WINDOW * period_s else period_s - late_s


class Phase:
    """When a job may begin its exchanges: at its turns, until it has missed several in a row.

    A job that others hold up for longer than its turn lasts would otherwise wait for the next one in every step, and be
    slower than without a phase.

    Attributes:
        kept: whether it still waits for its turns.
    """

    def __init__(self, shift_s: float | None, period_s: float) -> None:
        self.kept = shift_s is not None
        self._shift_s, self._period_s, self._missed = shift_s or 0.0, period_s, 0

    def wait_s(self, now_s: float) -> float:
        """Returns how long an exchange that is ready now waits.

        >>> phase = Phase(0.0, 1.0)
        >>> [round(phase.wait_s(step + 0.5), 3) for step in range(MOST_MISSED + 1)]
        [0.5, 0.5, 0.5, 0.0, 0.0]
        """
        if not self.kept:
            return 0.0
        wait_s = phase_wait_s(now_s, self._shift_s, self._period_s)
        # The first exchange finds its turn, and so does a job that is a little early.
        self._missed = self._missed + 1 if wait_s > WINDOW * self._period_s else 0
        self.kept = self._missed < MOST_MISSED
        return wait_s if self.kept else 0.0


def work(asked: Mapping[str, Any]) -> None:
    """Runs this host's part of its job."""
    host = int(os.environ["RANK"])
    hosts = sorted(rank for job in asked["jobs"] for rank in job["workers"])
    if host not in hosts:
        return  # no job runs here
    number, job = next((n, job) for n, job in enumerate(asked["jobs"]) if host in job["workers"])
    meeting = f"worker{hosts[0]}", int(os.environ["MASTER_PORT"])
    _be_worker(host, job["workers"], FIRST_PORT + number)
    # What else runs on this machine is no part of the network; root alone may say so.
    with contextlib.suppress(PermissionError):
        os.nice(PRIORITY)
    import torch
    import torch.distributed

    from tightwire.transport import init, shutdown

    c10d: Any = torch.distributed  # torch does not type its stores
    store = c10d.TCPStore(*meeting, is_master=host == hosts[0], timeout=timedelta(seconds=ARRIVAL_S))
    transport = init(deadline_s=120)
    exchange = _exchange(transport, job["exchange_bytes"])
    exchange(False)
    # All hosts of this machine share a clock; who comes last says when all begin.
    if store.add("arrived", 1) == len(hosts):
        store.set("start", str(time.monotonic() + READY_S))
    told = _run_steps(job, float(store.get("start")), asked["seconds"], exchange)
    if store.add("left", 1) == len(hosts):
        store.set("end", "")
    elif host == hosts[0]:
        store.wait(["end"])  # the store lives here
    if transport.rank == 0:
        print(json.dumps(told), flush=True)
    shutdown()


def _be_worker(host: int, workers: Sequence[int], port: int) -> None:
    """Becomes one of the workers of a job of its own, which meet on the first one's host."""
    os.environ |= {
        "RANK": str(workers.index(host)),
        "WORLD_SIZE": str(len(workers)),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": f"worker{workers[0]}",
        "MASTER_PORT": str(port),
    }


def _exchange(transport: Transport, num_bytes: int) -> Callable[[bool], bool]:
    """Returns what averages so much among a job's workers; all are told whether any of them says that it is over."""
    import torch

    from tightwire.architecture import Runner, build
    from tightwire.compression import Identity

    buffer = torch.ones(num_bytes // 4)
    program = build("ring", transport.size)
    runner = Runner(program, transport, numel=buffer.numel(), dtype=buffer.dtype, codec=Identity())

    def exchange(is_over: bool) -> bool:
        buffer[0] = float(is_over)
        runner.run(buffer, buffer)
        return bool(buffer[0] > 0)

    return exchange


def _run_steps(
    job: Mapping[str, Any], start_s: float, seconds: float, exchange: Callable[[bool], bool]
) -> dict[str, Any]:
    """Makes a job's steps from one moment on, for so long; returns what its first worker tells of them."""
    time.sleep(max(0.0, start_s - time.monotonic()))
    phase, parted_at = Phase(job["shift_s"], job["period_s"]), None
    begins, is_over = [], False
    while not is_over:
        begins.append(time.monotonic())
        time.sleep(job["compute_s"])
        was_kept = phase.kept
        time.sleep(phase.wait_s(time.monotonic() - start_s - job["compute_s"]))
        if was_kept and not phase.kept:
            parted_at = len(begins)
        # A job that the others hold up may have made few steps by then; one of them must have settled.
        is_over = exchange(time.monotonic() > start_s + seconds and len(begins) > SETTLED)
    begins.append(time.monotonic())
    steps = [after - before for before, after in zip(begins[SETTLED:], begins[SETTLED + 1 :], strict=False)]
    return {"name": job["name"], "step_s": statistics.fmean(steps), "parted_at": parted_at}


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
