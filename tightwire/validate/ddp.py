"""PyTorch's DistributedDataParallel as its own benchmark measured it: one device is given, the others are predicted.

The benchmark (pytorch/pytorch, `benchmarks/distributed/ddp`) trains on eight V100 a node, NVLink inside and four lines
of 100 Gb/s InfiniBand across. Nothing is fitted: the cluster is the preset `dgx-1v`, layers share out the measured step
by their operations, and the plan is stock DDP's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from tightwire.cluster import Cluster
from tightwire.cluster.presets import PRESETS
from tightwire.profile import ParameterProfile, Profile
from tightwire.profile.devices import derive, device
from tightwire.profile.models import model_shape
from tightwire.simulate import predict
from tightwire.simulate.interval import COVERAGE
from tightwire.validate import published
from tightwire.validate.table import Point, Table

NODE, DEVICE = "dgx-1v", "v100"
# From run to run the published numbers differ by so much: two builds of PyTorch, the same machines.
RUN_SPREAD = 0.03


@dataclass(frozen=True, kw_only=True)
class DdpCase:
    """One measured run: a build of PyTorch, a model, a bucket size, and so many devices."""

    source: str
    model: str
    batch: int
    bucket_mib: int
    gpus: int
    nodes: int
    samples_per_s: float

    @property
    def alone(self) -> tuple[str, str, int]:
        """What it has in common with the run on one device that it is predicted from."""
        return self.source, self.model, self.bucket_mib

    @property
    def step_s(self) -> float:
        """Of one step."""
        return self.batch / self.samples_per_s


def table() -> Table:
    """Predicts every number of devices from one."""
    alone = {case.alone: case for case in cases() if case.gpus == 1}
    points = []
    for case in cases():
        if case.gpus == 1:
            continue
        profile = profile_of(case.model, case.batch, alone[case.alone].step_s)
        plan = f"bsp/allreduce/none/fusion:{case.bucket_mib}MiB"
        found = predict(plan, profile, cluster(case.gpus, case.nodes))
        points.append(
            Point(
                name=f"{case.model}, {case.source}, {case.gpus} GPUs, buckets of {case.bucket_mib} MiB",
                group=f"{case.model}, {case.source}",
                measured=case.step_s,
                predicted=found.step_s,
                stated=(found.low_s, found.high_s),
            )
        )
    return Table(
        name="DDP scaling",
        points=tuple(points),
        target={"mape": 0.05, "coverage": COVERAGE},
        note="PyTorch's own benchmark on 2 to 64 V100, predicted from its step on one; nothing is fitted; seconds.",
    )


def profile_of(model: str, batch: int, step_s: float) -> Profile:
    """Returns a model's profile whose step takes what one device was measured to take."""
    derived = derive(model_shape(model), device(DEVICE), batch)
    scale = step_s / derived.compute_s

    def scaled(parameter: ParameterProfile) -> ParameterProfile:
        return dataclasses.replace(parameter, ready_s=scale * parameter.ready_s)

    return dataclasses.replace(
        derived,
        forward_s=scale * derived.forward_s,
        backward_s=scale * derived.backward_s,
        optimizer_s=scale * derived.optimizer_s,
        parameters=tuple(map(scaled, derived.parameters)),
        compute_uncertainty=RUN_SPREAD,
    )


def cluster(gpus: int, nodes: int) -> Cluster:
    """Returns so many devices on nodes of this kind."""
    return dataclasses.replace(PRESETS[NODE], devices=gpus // nodes).cluster(nodes)


def cases() -> Iterator[DdpCase]:
    """Yields what was measured."""
    for row in published.read("ddp_iterations.csv"):
        yield DdpCase(
            source=row["source"],
            model=row["model"],
            batch=int(row["batch"]),
            bucket_mib=int(row["bucket_mib"]),
            gpus=int(row["gpus"]),
            nodes=int(row["nodes"]),
            samples_per_s=float(row["images_per_s_per_gpu"]),
        )
