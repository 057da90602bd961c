"""What a search through layouts finds: layouts that fit, what is predicted of each, and why the first is best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tightwire.cluster import Cluster
from tightwire.parallel.layout import Layout
from tightwire.parallel.leg import Leg
from tightwire.parallel.memory import Memory
from tightwire.parallel.network import Network
from tightwire.parallel.time import Accelerators, Iteration, TrainingCost
from tightwire.parallel.transformer import Transformer
from tightwire.simulate.interval import DEVIATIONS

# What held-out published iterations were off by, as a standard deviation of logarithms: Megatron-LM's by tensor, data
# and pipeline parallelism, and those that shard parameters or gradients (`tightwire validate --only fsdp`).
RESIDUAL, SHARDED_RESIDUAL = 0.09, 0.25


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout that fits, and what is predicted of it.

    Attributes:
        how: the layout.
        memory: of the fullest device.
        iteration: by parts.
        utilisation: share of the devices' peak that the model's own operations use.
        leg: how the data-parallel replicas keep in step.
    """

    how: Layout
    memory: Memory
    iteration: Iteration
    utilisation: float
    leg: Leg

    @property
    def step_s(self) -> float:
        """Seconds of an iteration, with the plan of the data-parallel leg."""
        return self.iteration.seconds - self.iteration.data_s + self.leg.exposed_s

    @property
    def parts_s(self) -> dict[str, float]:
        """The parts of the step by name, averaging by the plan of the data-parallel leg."""
        return self.iteration.parts | {"data": self.leg.exposed_s}

    @property
    def interval_s(self) -> tuple[float, float]:
        """Where the truth is in 80 of 100: by what held-out measurements were off by, and the experts' spread."""
        reach = math.exp(DEVIATIONS * residual_of(self.how))
        low_s = max(0.0, self.step_s / reach - self.iteration.imbalance_s)
        return low_s, self.step_s * reach + 2 * self.iteration.imbalance_s

    def summary(self) -> dict[str, Any]:
        """Returns plain values."""
        low_s, high_s = self.interval_s
        return {
            "layout": self.how.layout,
            "step_s": self.step_s,
            "low_s": low_s,
            "high_s": high_s,
            "memory_bytes": round(self.memory.total),
            "memory": self.memory.parts,
            "utilisation": self.utilisation,
            "plan": self.leg.plan,
            "parts_s": self.parts_s,
        }


def residual_of(how: Layout) -> float:
    """Returns how far a prediction of a layout may be off: the standard deviation of its logarithm."""
    return SHARDED_RESIDUAL if how.shard in ("zero2", "zero3") else RESIDUAL


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """Layouts of a transformer on a cluster, fastest first, and why.

    Attributes:
        model: that is cut.
        cluster: its devices.
        training: the batch, and what kernels do.
        devices: as constants.
        network: what prices groups.
        ranking: the fastest that fit.
        considered: how many layouts are legal.
        fitting: how many of them fit the devices' memory.
        why: sentences with numbers.
    """

    model: Transformer
    cluster: Cluster
    training: TrainingCost
    devices: Accelerators
    network: Network
    ranking: tuple[Candidate, ...]
    considered: int
    fitting: int
    why: tuple[str, ...] = ()

    @property
    def best(self) -> Candidate:
        """The fastest."""
        return self.ranking[0]
