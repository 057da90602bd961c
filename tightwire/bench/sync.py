"""What a policy asks of the line at its busiest, and how evenly steps pass under it, beside stock DDP.

The launching half builds the lab; the working half, `python -m tightwire.bench.sync JSON`, runs on its hosts.
Compute is emulated by timed waits that release the processor, and the workers run under SCHED_BATCH, as if each had
a processor of its own.

The peak is the most that a worker sends within a *window*: the steps between two fragments' rounds, H/fragments. A line
that carries the peak in a window of pure compute is fast enough for training never to wait, where exchanges overlap.

A step has passed when the last worker has made it: one that is early waits for the others in the next round, which
delays nobody. All hosts of a lab have one clock.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tightwire.bench.ranks import run_ranks
from tightwire.bench.step import DDP
from tightwire.errors import LabError, PlanError
from tightwire.lab import Lab, Topology
from tightwire.plan import Plan
from tightwire.schedule import Streaming
from tightwire.workloads.emulated import Workload, emulated

if TYPE_CHECKING:
    from tightwire.transport import Transport

PLANS = (
    DDP,
    "diloco:32",
    "diloco:32/allreduce/none/streaming:4,overlap=4",
    "diloco:32/allreduce/int4+ef/streaming:4,overlap=4",
)
SLACK = 1.2  # fragments are not quite equal, and steps not quite even


@dataclass(frozen=True, kw_only=True)
class SyncBench:
    """What to measure.

    Attributes:
        workers: hosts in the lab.
        rate_bytes_per_s: of each host's link, each way.
        workload: what a step is.
        plans: `ddp` and texts of plans; the first that is not `ddp` is the one whose peak others are held against.
        rounds: per plan, after one to warm up.
    """

    workers: int
    rate_bytes_per_s: float
    workload: Workload
    plans: tuple[str, ...] = PLANS
    rounds: int = 4

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise PlanError(f"rounds={self.rounds}: at least one round must be measured.")
        for plan in self.plans:
            if plan != DDP:
                Plan.parse(plan)
        if self.plans in ((), (DDP,)):
            raise PlanError("no plan is left to hold against: write for example --plans 'ddp diloco:32'.")

    @property
    def reference(self) -> str:
        """The plan whose peak others are held against."""
        return next(plan for plan in self.plans if plan != DDP)

    @property
    def steps_per_round(self) -> int:
        """Of the slowest to agree."""
        return max(_steps_per_round(plan) for plan in self.plans)

    @property
    def window(self) -> int:
        """Steps between the rounds of two fragments, where most are: H/fragments."""
        return max(1, self.steps_per_round // max(map(fragments, self.plans)))


@dataclass(frozen=True, kw_only=True)
class SyncRow:
    """One plan.

    Attributes:
        plan: its text, or `ddp`.
        steps_per_s: of all together.
        p50_s: median time between the ends of two steps, each on the worker that is last to make it.
        p99_s: the step that one in a hundred exceeds.
        jitter: p99 over p50.
        bytes_per_step: that a worker sends.
        peak_bytes: the most that a worker sends in a window; for DDP by formula.
        needed_bytes_per_s: that peak over a window of pure compute.
        ratio: the peak, over that of the plan it is held against.
        bound: what the ratio is to be at most: SLACK over the fragments; None without fragments.
    """

    plan: str
    steps_per_s: float
    p50_s: float
    p99_s: float
    jitter: float
    bytes_per_step: float
    peak_bytes: int
    needed_bytes_per_s: float
    ratio: float | None
    bound: float | None


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What one worker saw of a plan.

    Attributes:
        ends_s: when each step ended, and before them the one before, by the machine's clock.
        sent_bytes: in each step.
    """

    ends_s: tuple[float, ...]
    sent_bytes: tuple[int, ...]


def fragments(plan: str) -> int:
    """Returns into how many parts a plan cuts the model for agreeing.

    >>> fragments("diloco:32/allreduce/none/streaming:4"), fragments("diloco:32"), fragments("ddp")
    (4, 1, 1)
    """
    schedule = Plan.parse(plan).schedule if plan != DDP else None
    return schedule.fragments if isinstance(schedule, Streaming) else 1


def peak_within(sent_bytes: Sequence[int], window: int) -> int:
    """Returns the most that was sent in so many steps in a row.

    >>> peak_within([0, 5, 0, 4, 0, 0], 3), peak_within([1, 2], 3)
    (9, 3)
    """
    starts = range(max(1, len(sent_bytes) - window + 1))
    return max(sum(sent_bytes[start : start + window]) for start in starts)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that at least `share` of all do not exceed.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5), percentile([3.0, 1.0, 2.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(bench: SyncBench, plan: str, everyone: Sequence[Passed], reference_bytes: int | None) -> SyncRow:
    """Returns a plan's row.

    Args:
        bench: what was asked.
        plan: its text.
        everyone: what each worker saw.
        reference_bytes: the peak that this one is held against; None: there is none yet.
    """
    ends_s = [max(of_step) for of_step in zip(*(passed.ends_s for passed in everyone), strict=True)]
    steps_s = _differences(ends_s)
    peak = max(peak_within(passed.sent_bytes, bench.window) for passed in everyone)
    p50_s, p99_s = statistics.median(steps_s), percentile(steps_s, 0.99)
    cut = fragments(plan)
    return SyncRow(
        plan=plan,
        steps_per_s=len(steps_s) / sum(steps_s),
        p50_s=p50_s,
        p99_s=p99_s,
        jitter=p99_s / p50_s,
        bytes_per_step=max(statistics.fmean(passed.sent_bytes) for passed in everyone),
        peak_bytes=peak,
        needed_bytes_per_s=peak / (bench.window * bench.workload.compute_s),
        ratio=peak / reference_bytes if reference_bytes else None,
        bound=SLACK / cut if cut > 1 else None,
    )


def measure(bench: SyncBench, on_row: Callable[[str], None] = lambda plan: None) -> tuple[list[SyncRow], str]:
    """Runs the bench in a lab.

    Returns:
        A row per plan, and what the lab says of itself.

    Raises:
        LabError: no lab is possible here, or its workers failed.
    """
    rows: list[SyncRow] = []

    def on_message(message: dict[str, Any]) -> None:
        rows.append(SyncRow(**message))
        on_row(rows[-1].plan)

    topology = Topology(workers=bench.workers, rate_bytes_per_s=bench.rate_bytes_per_s)
    with Lab(topology, batch_scheduling=True) as lab:
        if not lab.shapes_everything and DDP in bench.plans:
            raise LabError(f"nothing here can hold stock DDP to a rate: {lab.describe()} Leave ddp out.")
        about = lab.describe()
        run_ranks(lab, __spec__.name, bench, on_message)
    return rows, f"{about} Compute is emulated: {bench.workload.compute_s * 1e3:g} ms a step, waited for."


def work(bench: SyncBench) -> None:
    """Runs one rank of the bench; rank 0 prints a line per plan."""
    import torch

    import tightwire.transport as transport

    torch.set_num_threads(1)
    world = transport.init(deadline_s=60.0)
    reference_bytes: int | None = None
    for plan in sorted(bench.plans, key=lambda plan: plan != bench.reference):  # whose peak is known first
        told = world.exchange(json.dumps(asdict(_train(bench, plan, world))).encode())
        everyone = [Passed(**{k: tuple(v) for k, v in json.loads(text).items()}) for text in told]
        row = summary(bench, plan, everyone, reference_bytes)
        reference_bytes = reference_bytes or row.peak_bytes
        if world.rank == 0:
            print(json.dumps(asdict(row)), flush=True)


def _train(bench: SyncBench, plan: str, transport: Transport) -> Passed:
    """Trains for some rounds, after a first one; returns what this worker saw."""
    round_steps = _steps_per_round(plan)
    # Without rounds every window is like every other.
    warm, steps = round_steps, bench.rounds * max(round_steps, 2 * bench.window)
    ends_s, sent_bytes = [], []
    with _bound(bench, plan, transport) as (backward, step, sent):
        for number in range(warm + steps + 1):
            if number == warm:
                transport.barrier()
            backward()
            if number >= warm:  # by now, what the step before began is on its way
                sent_bytes.append(sent())
            step()
            if number >= warm:
                ends_s.append(time.monotonic())
    return Passed(ends_s=tuple(ends_s), sent_bytes=_differences(sent_bytes))


def _differences(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(b - a for a, b in itertools.pairwise(values))


Do = Callable[[], None]


@contextmanager
def _bound(bench: SyncBench, plan: str, transport: Transport) -> Iterator[tuple[Do, Do, Callable[[], int]]]:
    """Yields what makes a backward pass, what makes a step, and what counts the bytes sent so far."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from tightwire._attach import attach
    from tightwire.transport.base import native_bytes

    model = emulated(bench.workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    called, made, x = model, [0], torch.zeros(1, requires_grad=True)

    def backward() -> None:
        optimizer.zero_grad()
        called(x).sum().backward()
        made[0] += 1

    if plan == DDP:
        called = DistributedDataParallel(model)
        numel = sum(p.numel() for p in model.parameters())
        per_step = native_bytes(numel, 4, transport.size, transport.rank)
        yield backward, optimizer.step, lambda: made[0] * per_step
        return
    with attach(model, optimizer, plan, transport=transport) as run:
        yield backward, optimizer.step, lambda: run.report().sent_bytes


def _steps_per_round(plan: str) -> int:
    return 1 if plan == DDP else Plan.parse(plan).sync.steps_per_round


def read(text: str) -> SyncBench:
    """Reads a bench as `measure` writes it."""
    fields = json.loads(text)
    workload = fields["workload"]
    workload["layers"] = tuple(map(tuple, workload["layers"]))
    return SyncBench(**fields | {"workload": Workload(**workload), "plans": tuple(fields["plans"])})


if __name__ == "__main__":
    work(read(sys.argv[1]))
