"""How long planning takes, and how much memory: each case in a fresh process, imports not counted."""

from __future__ import annotations

import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tightwire.cluster import Cluster
from tightwire.errors import LabError
from tightwire.plan import Plan
from tightwire.planner import predict
from tightwire.planner.candidates import ALLOWANCES, STOCK, Allowance
from tightwire.planner.ranking import rank
from tightwire.planner.sweep import predictions_over
from tightwire.profile import Profile
from tightwire.profile.devices import derive, device
from tightwire.profile.models import model_shape

# 10 Gb/s of payload, a message in 20 µs.
BANDWIDTH_BYTES_PER_S, LATENCY_S = 1.2e9, 2e-5
LOSSLESS = (
    STOCK,
    "bsp/allreduce/none/mgwfbp",
    "bsp/allreduce/none/bytescheduler:4MiB,credit_bytes=16MiB",
    "bsp/allreduce:halving-doubling/none/mgwfbp",
    "bsp/allreduce:double-tree/none/mgwfbp",
)
ONE_PLAN = (STOCK, "bsp", "bsp/allreduce/powersgd:4+ef", "bsp/allreduce/none/bytescheduler")
# 10,000 predictions: five lossless plans at 2,000 points of a grid.
SWEEP = "a sweep"
SWEPT = {
    "bandwidth": tuple(1.25e8 * 1.6**i for i in range(20)),
    "latency": tuple(1e-6 * 2.5**i for i in range(10)),
    "workers": tuple(float(2**i) for i in range(1, 11)),
}
RANKED: dict[str, Allowance] = {allow: allow for allow in ALLOWANCES}


@dataclass(frozen=True, kw_only=True)
class PlannerRow:
    """One case.

    Attributes:
        name: what was planned.
        workers: in the cluster.
        candidates: plans that were looked at; 1 where one plan was predicted.
        seconds: from a profile and a cluster to the answer.
        peak_bytes: the most memory that the process ever held, the interpreter and all libraries included.
        cpu_s: processor time; on a machine that does other things, seconds say less.
        predicted: how many candidates were simulated; the others were left out by their bounds.
    """

    name: str
    workers: int
    candidates: int
    seconds: float
    peak_bytes: int
    cpu_s: float
    predicted: int


def cases() -> tuple[tuple[str, int], ...]:
    """Returns all cases: an allowance to rank within, or a plan to predict; and how many workers."""
    one = tuple((plan, 1024) for plan in ONE_PLAN)
    return (*((allow, 8) for allow in RANKED), ("lossy", 64), *one, (SWEEP, 8))


def measure() -> Iterator[PlannerRow]:
    """Yields a row per case, each from a process of its own.

    Raises:
        LabError: a process failed; with its last words.
    """
    for name, workers in cases():
        asked = [sys.executable, "-m", "tightwire.bench.planner", name, str(workers)]
        ended = subprocess.run(asked, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise LabError(f"planning {name} for {workers} workers failed: {ended.stderr.strip()[-500:]}")
        yield PlannerRow(**json.loads(ended.stdout.splitlines()[-1]))


def time_case(name: str, workers: int) -> PlannerRow:
    """Plans once and returns what it took; the peak is that of this process so far."""
    profile, cluster = resnet(), Cluster.uniform(workers, BANDWIDTH_BYTES_PER_S, LATENCY_S)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    considered = predicted = 1
    if allow := RANKED.get(name):
        ranking = rank(profile, cluster, allow)
        considered, predicted = ranking.considered, len(ranking.rows)
    elif name == SWEEP:
        plans = [Plan.parse(plan) for plan in LOSSLESS]
        considered = predicted = sum(
            len(rows) for _, _, rows in predictions_over(profile, cluster, SWEPT, plans)
        )
    else:
        predict(name, profile, cluster)
    return PlannerRow(
        name=name,
        workers=workers,
        candidates=considered,
        seconds=time.perf_counter() - start_s,
        peak_bytes=peak_bytes(),
        cpu_s=time.process_time() - start_cpu_s,
        predicted=predicted,
    )


def peak_bytes() -> int:
    """Returns the most memory that this process ever held."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's as well, from before this program was loaded
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resnet() -> Profile:
    """Returns what is planned for: ResNet-50 with its 161 tensors, 64 images per worker, on a V100."""
    return derive(model_shape("resnet50"), device("v100"), 64)


if __name__ == "__main__":
    print(json.dumps(asdict(time_case(sys.argv[1], int(sys.argv[2])))))
