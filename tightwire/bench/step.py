"""How long a training step takes under every schedule, beside stock DDP and the bound, in one run.

This half builds the lab; `bench.step_worker` runs on its hosts. Compute is emulated: timed waits that release the
processor, as on an accelerator, so that two cores can stand for many machines. Each plan trains the same model from
scratch in the same processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tightwire.bench.programs import PAYLOAD_SHARE
from tightwire.bench.ranks import run_ranks
from tightwire.errors import PlanError
from tightwire.lab import Lab, Topology
from tightwire.plan import Plan
from tightwire.workloads.emulated import Workload

WORKER = "tightwire.bench.step_worker"
DDP = "ddp"
ALONE = "alone"  # no exchange at all
DDP_SIZES_MB = (1, 2, 4, 8, 16, 32)
FUSION_SIZES = ("512KiB", "1MiB", "2MiB", "4MiB", "8MiB", "16MiB", "32MiB")
SCHEDULES = (
    "sequential", "wfbp", "mgwfbp", "ascwfbp", "tictac", "p3:1MiB", "pace", "bytescheduler",
    "bytescheduler:512KiB,2MiB,128KiB", "bytescheduler:1MiB,3MiB,256KiB", "bytescheduler:1MiB,4MiB,256KiB",
    "bytescheduler:2MiB,4MiB,512KiB", "bytescheduler:4MiB,8MiB,1MiB", "dear", "auto",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepBench:
    """What to measure.

    Attributes:
        workers: hosts in the lab.
        rate_bytes_per_s: of each host's link, each way, frame headers included.
        workload: what a step is.
        plans: texts of plans, `ddp`, `ddp:bucket_mb=N`, or `alone`: no exchange at all.
        steps: per plan, after warming up; their median counts.
    """

    workers: int
    rate_bytes_per_s: float
    workload: Workload
    plans: tuple[str, ...]
    steps: int = 8

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PlanError(f"steps={self.steps}: at least one step must be measured.")
        for plan in self.plans:
            if plan != ALONE and bucket_mb(plan) is None:
                Plan.parse(plan)

    @property
    def wire_bound_s(self) -> float:
        """The least time in which each rank's line carries what an all-reduce makes it send: 2(n−1)/n·bytes."""
        share = 2 * (self.workers - 1) / self.workers
        return share * self.workload.num_bytes / (PAYLOAD_SHARE * self.rate_bytes_per_s)

    @property
    def bound_s(self) -> float:
        """No lossless step is shorter: max(compute, wire)."""
        return max(self.workload.compute_s, self.wire_bound_s)

    @property
    def order_bound_s(self) -> float:
        """No lossless step is shorter in which layers are read whole and in their order; at least `bound_s`.

        What the first k layers send leaves after the backward pass of the k-th and must be there before its forward
        pass: meanwhile only the layers before it compute. So a step lasts at least as long as the wire needs for the
        first k and the others, the k-th included, compute, for any k. `bound_s` where shares are not known.
        """
        sent, computed_before, longest_s = 0, 0.0, self.bound_s
        for tensors, share in zip(self.workload.layers, self.workload.shares, strict=False):
            if tensors:
                sent += self.workload.item_bytes * sum(tensors)
                wire_s = self.wire_bound_s * sent / self.workload.num_bytes
                longest_s = max(longest_s, wire_s + (1.0 - computed_before) * self.workload.compute_s)
            computed_before += share
        return longest_s


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One plan.

    Attributes:
        plan: its text, or `ddp…`.
        step_s: median over steps, each from when all ranks had ended one until all have ended the next.
        ratio: step_s over the bound.
        low_s: the fastest step.
        high_s: the slowest step.
        chosen: the schedule that a search ended with; None where nothing was searched for.
    """

    plan: str
    step_s: float
    ratio: float
    low_s: float
    high_s: float
    chosen: str | None = None


def default_plans() -> tuple[str, ...]:
    """Returns stock DDP with several bucket sizes, fixed buckets and every schedule."""
    return (
        DDP,
        *(f"{DDP}:bucket_mb={size}" for size in DDP_SIZES_MB),
        *(f"bsp/allreduce/none/fusion:{size}" for size in FUSION_SIZES),
        *(f"bsp/allreduce/none/{schedule}" for schedule in SCHEDULES),
    )


def bytes_for(wire_s: float, workers: int, rate_bytes_per_s: float) -> float:
    """Returns how many bytes of gradients keep the wire busy for `wire_s`."""
    return wire_s * PAYLOAD_SHARE * rate_bytes_per_s / (2 * (workers - 1) / workers)


def measure(
    bench: StepBench, on_row: Callable[[StepRow], None] = lambda row: None
) -> tuple[list[StepRow], str]:
    """Runs the bench in a lab.

    Args:
        bench: what to measure.
        on_row: called with each row as it is there.

    Returns:
        The rows, in the order of the plans, and what the lab says of itself.

    Raises:
        LabError: no lab is possible here, or its workers failed.
    """
    with Lab(topology_of(bench), batch_scheduling=True) as lab:
        rows, about = measure_in(lab, bench, WORKER, on_row)
    return rows, about + " Compute is emulated."


def measure_in(
    lab: Lab, bench: StepBench, module: str, on_row: Callable[[StepRow], None]
) -> tuple[list[StepRow], str]:
    """Runs a working half, `python -m module JSON`, on the hosts of a lab; the rest is as in `measure`."""
    rows: list[StepRow] = []

    def on_message(message: dict[str, Any]) -> None:
        rows.append(StepRow(**message))
        on_row(rows[-1])

    about = lab.describe()
    if not lab.shapes_everything:
        bench = replace(bench, plans=tuple(p for p in bench.plans if bucket_mb(p) is None))
        about += " DDP is not shaped here, so it is not compared."
    run_ranks(lab, module, bench, on_message)
    return rows, about


def topology_of(bench: StepBench) -> Topology:
    """Returns the lab's hosts and links."""
    return Topology(workers=bench.workers, rate_bytes_per_s=bench.rate_bytes_per_s)


def bucket_mb(plan: str) -> float | None:
    """Returns DDP's bucket size; None where the plan is one of ours.

    Raises:
        PlanError: `ddp` with something else behind it.
    """
    if plan == DDP:
        return 25.0
    if not plan.startswith(DDP):
        return None
    name, _, size = plan.partition("=")
    try:
        if name == f"{DDP}:bucket_mb" and float(size) > 0:
            return float(size)
    except ValueError:
        pass
    raise PlanError(f"{plan!r}: write ddp, or ddp:bucket_mb=4.")
