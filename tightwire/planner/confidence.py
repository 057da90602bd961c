"""How likely it is that one plan truly beats another, given what their predictions leave open."""

from __future__ import annotations

import math
import statistics

from tightwire.cluster import Cluster
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.simulate import Prediction, fit_of

# What the simulator leaves out differs from plan to plan, as a share of the step.
SIMULATION_ERROR = 0.01


def chance(first: Prediction, second: Prediction, profile: Profile, cluster: Cluster) -> float:
    """Returns the probability that `first` is truly the faster one.

    Errors are taken to be normal. How far compute was measured wrong is the same for all plans of one model, and
    cancels. How far a program's fit is wrong is the same for all plans that go by it: of two such plans only the
    difference of what they wait for the wire remains; under different programs the errors are independent. What the
    simulator leaves out is independent, 1 % of each step.

    Args:
        first: a plan's prediction.
        second: another's.
        profile: what both were predicted from.
        cluster: likewise.
    """
    own, other = _wire_deviation_s(first, profile), _wire_deviation_s(second, profile)
    same = _carrier(first, profile, cluster) == _carrier(second, profile, cluster)
    wire_s = abs(own - other) if same else math.hypot(own, other)
    deviation_s = math.hypot(wire_s, SIMULATION_ERROR * first.step_s, SIMULATION_ERROR * second.step_s)
    if deviation_s == 0.0:
        return 0.5
    return statistics.NormalDist().cdf((second.step_s - first.step_s) / deviation_s)


def _wire_deviation_s(found: Prediction, profile: Profile) -> float:
    """Returns what of a prediction's deviation is not the noise of compute."""
    deviation_s = (found.high_s - found.step_s) / 2
    return math.sqrt(max(0.0, deviation_s**2 - (profile.noise * found.compute_s) ** 2))


def _carrier(found: Prediction, profile: Profile, cluster: Cluster) -> str:
    try:
        return fit_of(Plan.parse(found.plan), profile, cluster).program
    except (PlanError, ProgramError):
        return found.plan
