"""The bandwidth that DiLoCo's variants need, against the figures of Streaming DiLoCo (arXiv:2501.18512, table 4).

Those were simulated, not measured, and on a grid: neighbours differ by a factor of 1.2. Sites send bfloat16 there, and
what is exchanged travels beside one backward pass even where no step overlaps it; so it does here, and nowhere else in
this package: a pseudo-gradient exists only after the last backward of its round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.simulate import predict
from tightwire.validate import published
from tightwire.validate.table import Table
from tightwire.validate.unfitted import points_of
from tightwire.validate.utilisation import LATENCY_S, SITES, Model, least_gigabits

STEPS = 100
LAYERS_PER_FRAGMENT = 3
# `{}`: how many fragments.
PLANS = {
    "data-parallel": "bsp/allreduce/bf16/wfbp",
    "DiLoCo": f"diloco:{STEPS}/allreduce/bf16",
    "streaming": f"diloco:{STEPS}/allreduce/bf16/streaming:{{}},overlap=0",
    "overlapped": f"diloco:{STEPS}/allreduce/bf16/streaming:{{}}",
    "overlapped 4-bit": f"diloco:{STEPS}/allreduce/int4+ef/streaming:{{}}",
}


@dataclass(frozen=True, kw_only=True)
class DilocoCase:
    """What one method needs for one model to compute so much of the time."""

    model: Model
    method: str
    utilisation: float
    figure: float

    @property
    def name(self) -> str:
        """What is computed by which method, and how much of the time."""
        return f"{self.model.name}, {self.method}, {self.utilisation:.0%} computing"

    @property
    def group(self) -> str:
        """Methods compete for one model and one share of the time."""
        return f"{self.model.name}, {self.utilisation:.0%}"

    def predict(self) -> float:
        """Returns the least Gb/s; infinity where none suffices."""
        return least_gigabits(self.used, self.utilisation) or math.inf

    def stated(self, predicted: float) -> None:
        """States no interval: the figures were simulated."""

    @property
    def plan(self) -> Plan:
        """The method as a plan."""
        return Plan.parse(PLANS[self.method].format(self.model.layers // LAYERS_PER_FRAGMENT))

    def used(self, gigabits: float) -> float:
        """Returns the share of time in which devices compute, with so many Gb/s between sites each way."""
        profile, plan = self.model.profile(), self.plan
        found = predict(plan, profile, Cluster.uniform(SITES, gigabits * 1e9 / 8, LATENCY_S))
        if plan.sync.name == "bsp":
            return profile.compute_s / found.step_s
        rounds = plan.sync.steps_per_round / plan.schedule.num_fragments
        waited_s = max(0.0, (found.step_s - profile.compute_s) * rounds - profile.backward_s)
        return profile.compute_s / (profile.compute_s + waited_s / rounds)


def table() -> Table:
    """Predicts every figure of the table."""
    return Table(
        name="DiLoCo's bandwidth",
        points=points_of(cases()),
        better="low",
        target={"mape": 0.2},
        note="Gb/s between sites in which 50 to 99 % of the time is computing, as the paper's simulation has it (on a "
        "grid of 1.2); nothing is fitted.",
    )


def cases() -> Iterator[DilocoCase]:
    """Yields the published figures."""
    for row in published.read("streaming_diloco_bandwidth.csv"):
        yield DilocoCase(
            model=Model(
                name=row["model"],
                parameters=float(row["parameters"]),
                layers=int(row["layers"]),
                step_s=float(row["step_s"]),
            ),
            method=row["method"],
            utilisation=float(row["utilisation"]),
            figure=float(row["gigabits_per_s"]),
        )
