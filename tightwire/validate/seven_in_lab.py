"""The survey's seven methods run for real in the lab, and their order beside the published one.

Every method is a plan of ours. What is compared is the order of the methods, not their times: the lab's cores and
links are not the survey's GPUs, but how long the wire is busy for each second of compute can be the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tightwire.bench import step
from tightwire.bench.step import StepBench, StepRow
from tightwire.errors import LabError
from tightwire.plan import Plan
from tightwire.validate.seven_methods import GPUS_PER_NODE, MODELS, cases, load
from tightwire.validate.table import Point, Table
from tightwire.workloads.emulated import Workload, shaped_like

# Slices of 4 MB are a 25th of ResNet-50's gradients, and a credit is four of them. Here they are so on every workload,
# as the tensors are scaled too; of BERT-Base's gradients 4 MB are but a 110th. (Over all-reduce the survey's slices
# were of 4 million parameters, which cut nothing of ResNet-50: see seven_methods.py.)
SLICES, CREDIT_SLICES = 25, 4
PLANS: Mapping[str, str] = {
    "BSP-PS": "bsp/ps/none/sequential",
    "BSP-A2A": "bsp/allreduce:ring/none/sequential",
    "WFBP-PS": "bsp/ps/none/wfbp",
    "WFBP-A2A": "bsp/allreduce:ring/none/wfbp",
    "MG-WFBP": "bsp/allreduce:ring/none/mgwfbp",
    "ByteScheduler-PS": "bsp/ps/none/bytescheduler:{partition},{credit}",
    "ByteScheduler-A2A": "bsp/allreduce:ring/none/bytescheduler:{partition},{credit}",
}
BASE = "BSP-A2A"
LINE_BYTES_PER_S = {"10GbE-TCP": 1.25e9, "100Gb-IB-RDMA": 12.5e9}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A cell of the survey.

    Attributes:
        network: between the nodes of four GPUs.
        gpus: in all.
        wire_over_compute: seconds in which a node's line is busy with an all-reduce, over a step's compute.
        samples_per_s: by method.
    """

    network: str
    gpus: int
    wire_over_compute: float
    samples_per_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A workload under every method, and the cell of the survey that is most like it.

    Attributes:
        model: as the survey calls it.
        wire_over_compute: as asked.
        compute_s: emulated, of a step.
        bound_s: max(compute, wire).
        rows: by method.
        published: of the same model.
    """

    model: str
    wire_over_compute: float
    compute_s: float
    bound_s: float
    rows: Mapping[str, StepRow]
    published: Published

    def speedup(self, method: str) -> float:
        """Returns how many times as fast as `BSP-A2A` a method is here."""
        return self.rows[BASE].step_s / self.rows[method].step_s

    def published_speedup(self, method: str) -> float:
        """Returns the same as published."""
        return self.published.samples_per_s[method] / self.published.samples_per_s[BASE]

    def agreement(self) -> tuple[float, float]:
        """Returns Spearman's correlation of the two orders, and what picking our fastest costs there, as a share."""
        points = tuple(
            Point(name=m, group="", measured=self.published_speedup(m), predicted=self.speedup(m))
            for m in self.rows
        )
        row = Table(name="orders", points=points, better="high").rows()[0]
        return row["spearman"], row["regret"]

    def place(self, method: str) -> tuple[int, int]:
        """Returns a method's place here and as published; 1 is the fastest."""
        return (
            1 + sum(self.speedup(other) > self.speedup(method) for other in self.rows),
            1 + sum(self.published_speedup(other) > self.published_speedup(method) for other in self.rows),
        )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What to run.

    Attributes:
        models: as the survey calls them.
        ratios: seconds of wire over seconds of compute.
        workers: hosts in the lab.
        rate_bytes_per_s: of each host's link, each way.
        compute_s: of a step, emulated.
        steps: measured per method; their median counts.

    Raises:
        LabError: an unknown model, or a ratio that is none.
    """

    models: tuple[str, ...] = tuple(MODELS)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    workers: int = 4
    rate_bytes_per_s: float = 125e6
    compute_s: float = 0.5
    steps: int = 5

    def __post_init__(self) -> None:
        if strangers := [model for model in self.models if model not in MODELS]:
            raise LabError(f"the survey has no {strangers[0]!r} here; there are {', '.join(MODELS)}.")
        for ratio in self.ratios:
            if not 0 < ratio < math.inf:
                raise LabError(
                    f"a wire/compute ratio of {ratio:g}: write positive numbers, such as 0.5,1,2,4."
                )
        if self.compute_s <= 0:
            raise LabError(
                f"compute_s={self.compute_s:g}: the compute of a step must be above 0, for ratios are relative to it."
            )

    def benches(self) -> Iterator[tuple[str, float, StepBench]]:
        """Yields model, ratio and what to measure."""
        for model in self.models:
            for ratio in self.ratios:
                num_bytes = step.bytes_for(ratio * self.compute_s, self.workers, self.rate_bytes_per_s)
                workload = shaped_like(MODELS[model], num_bytes, self.compute_s)
                yield (
                    model,
                    ratio,
                    StepBench(
                        workers=self.workers,
                        rate_bytes_per_s=self.rate_bytes_per_s,
                        workload=workload,
                        plans=tuple(plans(workload).values()),
                        steps=self.steps,
                    ),
                )


def plans(workload: Workload) -> dict[str, str]:
    """Returns each method's plan, ByteScheduler's sizes being as large beside the gradients as the survey's."""
    partition = -(-workload.num_bytes // SLICES)
    return {
        method: str(Plan.parse(text.format(partition=partition, credit=CREDIT_SLICES * partition)))
        for method, text in PLANS.items()
    }


def run(
    experiment: Experiment, on_row: Callable[[str, StepRow], None] = lambda cell, row: None
) -> Iterator[Cell]:
    """Measures cell by cell, and yields each as it is there.

    Args:
        experiment: what to run.
        on_row: called with the cell's name and each row as it is there.

    Raises:
        LabError: no lab is possible here, or its workers failed.
    """
    for model, ratio, bench in experiment.benches():
        name = f"{model}, wire/compute {ratio:g}"
        rows, _ = step.measure(bench, lambda row, name=name: on_row(name, row))  # type: ignore[misc]
        yield Cell(
            model=model,
            wire_over_compute=ratio,
            compute_s=bench.workload.compute_s,
            bound_s=bench.bound_s,
            rows=dict(zip(PLANS, rows, strict=True)),
            published=nearest(model, ratio),
        )


def nearest(model: str, wire_over_compute: float) -> Published:
    """Returns the model's published cell, across nodes, whose wire/compute is nearest by ratio."""
    return min(published(model), key=lambda cell: abs(math.log(cell.wire_over_compute / wire_over_compute)))


def published(model: str) -> Sequence[Published]:
    """Returns the survey's cells of a model on more than one node.

    Over all-reduce each node's line carries 2(n − 1)/n of the gradients each way; compute is one GPU's alone.
    """
    alone = load(model)
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for case in cases():
        if case.model == model and case.gpus > GPUS_PER_NODE:
            cells.setdefault((case.network, case.gpus), {})[case.method] = case.samples_per_s
    return [
        Published(
            network=network,
            gpus=gpus,
            wire_over_compute=2
            * (gpus - 1)
            / gpus
            * alone.num_bytes
            / LINE_BYTES_PER_S[network]
            / alone.compute_s,
            samples_per_s=samples_per_s,
        )
        for (network, gpus), samples_per_s in cells.items()
    ]
