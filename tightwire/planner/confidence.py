"""How likely it is that one plan truly beats another, given what their predictions leave open."""

from __future__ import annotations

import math
import statistics

from tightwire.cluster import Cluster
from tightwire.errors import PlanError, ProgramError
from tightwire.profile import Profile
from tightwire.simulate import SIMULATION_ERROR, Prediction, fit_of


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
    own, other = first.wire_deviation_s, second.wire_deviation_s
    same = _collective(first, profile, cluster) == _collective(second, profile, cluster)
    wire_s = abs(own - other) if same else math.hypot(own, other)
    deviation_s = math.hypot(wire_s, SIMULATION_ERROR * first.step_s, SIMULATION_ERROR * second.step_s)
    if deviation_s == 0.0:
        return 0.5
    return statistics.NormalDist().cdf((second.step_s - first.step_s) / deviation_s)


def _collective(found: Prediction, profile: Profile, cluster: Cluster) -> str:
    try:
        return fit_of(found.plan, profile, cluster).program
    except (PlanError, ProgramError):
        return str(found.plan)
