"""How sure a prediction is: the interval that it states, from what its measurements and formulas leave open.

Every interval holds 80 %: errors are taken to be normal, and an interval reaches 1.28 standard deviations to each side.
Four things are left open. Compute that was measured varies from step to step; compute that was derived from a data
sheet may be wrong altogether. What transfers take from it on a device may be a guess. A program's time on the wire is
as sure as its fit. And the simulator leaves things out.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

from tightwire.cluster import Cluster
from tightwire.profile import Profile
from tightwire.simulate.prediction import Prediction

# The probability that an interval claims to hold the truth, and how many standard deviations that is to each side.
COVERAGE = 0.8
DEVIATIONS = statistics.NormalDist().inv_cdf((1 + COVERAGE) / 2)
# What the simulator leaves out, as a share of the step: the median of held-out errors in the lab was 1 %.
SIMULATION_ERROR = 0.01


def with_interval(
    found: Prediction, profile: Profile, cluster: Cluster, residual: float, *, steps: int = 1
) -> Prediction:
    """Returns a prediction with its interval.

    Args:
        found: the prediction.
        profile: what it was made from.
        cluster: likewise.
        residual: of the program that carries most bytes: relative error of its time.
        steps: over how many steps delays of single steps average out.
    """
    wire_s = 0.0
    if cluster.workers > 1:
        waiting_s = found.exposed_s if found.bound_by != "compute" else min(found.exposed_s, found.step_s / 2)
        wire_s = residual * waiting_s
    compute_s = math.hypot(profile.noise / math.sqrt(steps), profile.compute_uncertainty) * found.compute_s
    taken_s = profile.sharing_uncertainty * max(0.0, found.compute_s - profile.compute_s)
    deviation_s = math.hypot(compute_s, taken_s, wire_s, SIMULATION_ERROR * found.step_s)
    return dataclasses.replace(
        found,
        low_s=max(0.0, found.step_s - DEVIATIONS * deviation_s),
        high_s=found.step_s + DEVIATIONS * deviation_s,
        wire_deviation_s=wire_s,
    )
