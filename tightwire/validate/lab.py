"""Predictions against this machine's lab: steps of emulated compute, real exchanges over shaped links.

What predictions know is what a user's would: `probe` of the wire, times of codecs and passes, a step without exchange.
No step under any plan is fitted on, so that all points are held out. Calibration and steps run under the same
scheduling. The working half, which measures wire and codecs on the lab's hosts, is calibration.py.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tightwire.bench import step as steps
from tightwire.bench.step import StepBench
from tightwire.cluster import Cluster, Fit
from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Topology
from tightwire.lab.topology import format_rate
from tightwire.profile import CodecCost, ParameterProfile, Profile
from tightwire.simulate import predict
from tightwire.validate.calibration import MARK
from tightwire.validate.table import Point, Table
from tightwire.workloads.emulated import FORWARD_SHARE, Workload, shaped_like, uniform

WORKERS = 4
PLANS = (
    "bsp/allreduce/none/sequential",
    "bsp/allreduce/none/wfbp",
    "bsp/allreduce/none/fusion:4MiB",
    "bsp/allreduce:ring/none/fusion:2MiB",
    "bsp/allreduce/none/mgwfbp",
    "bsp/allreduce/none/bytescheduler:1MiB,4MiB",
    "bsp/allreduce/bf16/fusion:4MiB",
    "bsp/allreduce/int8+ef/fusion:4MiB",
    "bsp/allreduce/topk:0.01+ef/fusion:4MiB",
    "delayed:1/allreduce/none/fusion:4MiB",
)
COMPUTE_S = 0.6
STEPS = 6


@dataclass(frozen=True, kw_only=True)
class LabCell:
    """A workload on links of one rate."""

    rate_bytes_per_s: float
    workload: Workload

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.workload.name} at {format_rate(self.rate_bytes_per_s)}"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured before any step."""

    cluster: Cluster
    codecs: tuple[CodecCost, ...]
    pass_s_per_element: float


def cells() -> tuple[LabCell, ...]:
    """Returns what is measured: wires slower than, as fast as and faster than their workloads."""

    def of(model: str, rate: float, wire_over_compute: float) -> LabCell:
        num_bytes = steps.bytes_for(wire_over_compute * COMPUTE_S, WORKERS, rate)
        return LabCell(rate_bytes_per_s=rate, workload=shaped_like(model, num_bytes, COMPUTE_S))

    even = LabCell(rate_bytes_per_s=25e6, workload=uniform(24, 2**19, COMPUTE_S))
    return even, of("resnet50", 62.5e6, 0.8), of("bert-base", 125e6, 1.5)


def table() -> Table:
    """Measures every plan in every cell, and compares with what was predicted.

    Raises:
        LabError: no lab that shapes links is possible here.
    """
    points: list[Point] = []
    for cell in cells():
        calibration = calibrate(cell.rate_bytes_per_s)
        bench = StepBench(
            workers=WORKERS,
            rate_bytes_per_s=cell.rate_bytes_per_s,
            workload=cell.workload,
            plans=(steps.ALONE, *PLANS),
            steps=STEPS,
        )
        (alone, *rows), _ = steps.measure(bench, on_row=_teller(cell))
        measured = dataclasses.replace(cell.workload, compute_s=alone.step_s)  # waits last a little longer
        profile = profile_of(measured, calibration)
        points += [
            Point(
                name=f"{cell.name}: {row.plan}",
                group=cell.name,
                measured=row.step_s,
                predicted=found.step_s,
                stated=(found.low_s, found.high_s),
            )
            for row in rows
            if (found := predict(row.plan, profile, calibration.cluster))
        ]
    return Table(
        name="lab",
        points=tuple(points),
        better="low",
        target={"median": 0.05, "worst": 0.15, "regret": 0.05},
        note=f"{WORKERS} workers, emulated compute; wire, codecs, compute alone measured, no step fitted; seconds.",
    )


def profile_of(workload: Workload, calibration: Calibration) -> Profile:
    """Returns the profile of a workload, its compute shared out as its waits are."""
    forward_s = FORWARD_SHARE * workload.compute_s
    backward_s = workload.compute_s - forward_s
    parameters, done = [], 0.0
    layers = list(enumerate(zip(workload.layers, workload.shares, strict=True)))
    for number, (sizes, share) in reversed(layers):
        done += share
        parameters += [
            ParameterProfile(
                name=f"{number}.{place}", numel=numel, ready_s=backward_s * min(1.0, done), shape=(numel,)
            )
            for place, numel in reversed(list(enumerate(sizes)))
        ]
    return Profile(
        forward_s=forward_s,
        backward_s=backward_s,
        optimizer_s=0.0,
        parameters=tuple(parameters),
        codecs=calibration.codecs,
        pass_s_per_element=calibration.pass_s_per_element,
        noise=0.0,
    )


def calibrate(rate_bytes_per_s: float) -> Calibration:
    """Measures wire and codecs in a lab of this rate.

    Raises:
        LabError: no lab that shapes links is possible here, or its workers failed.
    """
    found: list[dict[str, Any]] = []

    def on_line(line: OutputLine) -> None:
        if line.rank == 0 and line.text.startswith(MARK):
            found.append(json.loads(line.text.removeprefix(MARK)))
        else:
            print(f"[{line.rank}] {line.text}", file=sys.stderr)

    topology = Topology(workers=WORKERS, rate_bytes_per_s=rate_bytes_per_s)
    with Lab(topology, batch_scheduling=True) as lab:
        if not lab.shapes_everything:
            raise LabError(f"predictions are held to links that the kernel shapes, and {lab.describe()}")
        result = lab.run([sys.executable, "-m", "tightwire.validate.calibration", *PLANS], on_line=on_line)
    if not result.ok or not found:
        raise LabError(
            f"the calibration failed: {result.describe().rstrip('.')}. Its workers' output says why."
        )
    cluster = found[0]["cluster"]
    return Calibration(
        cluster=Cluster(
            workers=cluster["workers"],
            bandwidth_bytes_per_s=cluster["bandwidth_bytes_per_s"],
            latency_s=cluster["latency_s"],
            fits=tuple(Fit(**fit) for fit in cluster["fits"]),
        ),
        codecs=tuple(CodecCost(**cost) for cost in found[0]["codecs"]),
        pass_s_per_element=found[0]["pass_s_per_element"],
    )


def _teller(cell: LabCell) -> Callable[[steps.StepRow], None]:
    def tell(row: steps.StepRow) -> None:
        print(f"{cell.name}: {row.plan} {row.step_s:.3f} s", file=sys.stderr, flush=True)

    return tell
