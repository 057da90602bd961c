"""Published speed-ups of PyTorch's DDP communication hooks, the few whose source tells enough to predict them.

Of each source one number is given, by which what it does not tell is found; the others are predicted. EgoVerse's model
of 1.2 billion parameters takes 1.4 s on one A40, and the rate of the lines between the eight is found from plain DDP.
The issue's ResNet-50 runs on two V100 a node over 3 Gb/s, and the step of one is found from two nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tightwire.cluster import Cluster
from tightwire.cluster.levels import Level
from tightwire.cluster.values import PAYLOAD_SHARE
from tightwire.profile import Profile
from tightwire.profile.devices import DEVICES, TOUCHES_PER_PASS
from tightwire.simulate import predict
from tightwire.validate import published
from tightwire.validate.ddp import profile_of
from tightwire.validate.table import Point, Table

GIGABIT = 1e9 / 8
TCP_LATENCY_S, PCIE_LATENCY_S = 5e-5, 1e-5
# The unknown of a source lies between these.
LEAST, MOST = 1e-3, 1e3
PRECISION = 1.0001

# What a source trains and on what, by the one number that it does not tell.
Setup = Callable[[float, int], tuple[Profile, Cluster]]


@dataclass(frozen=True, kw_only=True)
class HookCase:
    """One measured run: how many times as fast as one worker so many are, under a hook."""

    source: str
    hook: str
    plan: str
    workers: int
    is_given: bool
    times: float

    def predict(self, unknown: float) -> float:
        """Returns how many times as fast as one worker they should be."""
        profile, cluster = SETUPS[self.source](unknown, self.workers)
        return self.workers * profile.compute_s / predict(self.plan, profile, cluster).step_s


def table() -> Table:
    """Predicts every run that was not given."""
    points, constants = [], {}
    for source in dict.fromkeys(case.source for case in cases()):
        of_source = [case for case in cases() if case.source == source]
        unknown = _unknown(next(case for case in of_source if case.is_given))
        constants[source] = unknown
        points += [
            Point(
                name=f"{source}: {case.workers} workers, hook {case.hook}",
                group=source,
                measured=case.times,
                predicted=case.predict(unknown),
                held_out=not case.is_given,
            )
            for case in of_source
        ]
    return Table(
        name="DDP hooks",
        points=tuple(points),
        note="How many times as fast as one worker; of each source one number is given. Few, for most published "
        "speed-ups of hooks tell neither network nor step.",
        constants=constants,
    )


def cases() -> Iterator[HookCase]:
    """Yields what was measured."""
    for row in published.read("ddp_hooks.csv"):
        yield HookCase(
            source=row["source"],
            hook=row["hook"],
            plan=row["plan"],
            workers=int(row["workers"]),
            is_given=row["given"] == "1",
            times=float(row["times_as_fast"]),
        )


def _unknown(given: HookCase) -> float:
    """Returns the unknown under which what is given is predicted; more of it is faster."""
    low, high = LEAST, MOST
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if given.predict(middle) >= given.times else (middle, high)
    return high


def _policy_on_a40(gigabytes_per_s: float, workers: int) -> tuple[Profile, Cluster]:
    step_s = 1.4
    profile = Profile.uniform(
        layers=48, numel_per_layer=25_000_000, forward_s=step_s / 3, backward_s=step_s * 2 / 3
    )
    # An A40 moves 696 GB/s (NVIDIA's data sheet).
    profile = dataclasses.replace(profile, pass_s_per_element=4 * TOUCHES_PER_PASS / 696e9, device="a40")
    return profile, Cluster.uniform(workers, gigabytes_per_s * 1e9, PCIE_LATENCY_S)


def _resnet_on_v100(step_s: float, workers: int) -> tuple[Profile, Cluster]:
    profile = profile_of("resnet50", 32, step_s)
    inside = Level(
        name="node",
        workers=2,
        bandwidth_bytes_per_s=DEVICES["v100"].host_bytes_per_s,
        latency_s=PCIE_LATENCY_S,
    )
    line = 3 * GIGABIT * PAYLOAD_SHARE
    across = Level(name="cluster", workers=workers, bandwidth_bytes_per_s=line, latency_s=TCP_LATENCY_S)
    levels = (inside, across)
    return profile, Cluster(
        workers=workers, bandwidth_bytes_per_s=line, latency_s=TCP_LATENCY_S, levels=levels
    )


SETUPS: Mapping[str, Setup] = {
    "EgoVerse pull request 667": _policy_on_a40,
    "pytorch issue 74148": _resnet_on_v100,
}
