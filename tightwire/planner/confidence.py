"""How likely it is that one plan truly beats another, given what their predictions leave open."""

from __future__ import annotations

import math
import statistics

from tightwire.cluster import Cluster, Fit
from tightwire.errors import PlanError, ProgramError
from tightwire.profile import Profile
from tightwire.simulate import SIMULATION_ERROR, Prediction, fit_of

# A comparison that rests on formulas is a coin's toss in one case of ten: formulas leave out what they do not know of,
# such as incast, or a protocol that changes with size.
FORMULA_TRUST = 0.9


def chance(first: Prediction, second: Prediction, profile: Profile, cluster: Cluster) -> float:
    """Returns the probability that `first` is truly the faster one.

    Errors are taken to be normal. How far compute was measured wrong is the same for all plans of one model, and
    cancels. How far a program's fit is wrong is the same for all plans that go by it: of two such plans only the
    difference of what they wait for the wire remains; under different programs the errors are independent. What the
    simulator leaves out is independent, 1 % of each step. Where a program was not measured, nothing is ever sure.

    Args:
        first: a plan's prediction.
        second: another's.
        profile: what both were predicted from.
        cluster: likewise.
    """
    fits = [_fit(found, profile, cluster) for found in (first, second)]
    same = fits[0] is not None and fits[1] is not None and fits[0].program == fits[1].program
    own, other = first.wire_deviation_s, second.wire_deviation_s
    wire_s = abs(own - other) if same else math.hypot(own, other)
    deviation_s = math.hypot(wire_s, SIMULATION_ERROR * first.step_s, SIMULATION_ERROR * second.step_s)
    if deviation_s == 0.0:
        return 0.5
    found = statistics.NormalDist().cdf((second.step_s - first.step_s) / deviation_s)
    return tempered(found, (first, second), profile, cluster)


def tempered(
    probability: float, of: tuple[Prediction, Prediction], profile: Profile, cluster: Cluster
) -> float:
    """Returns a probability as far as formulas can be trusted, where one of two predictions rests on them."""
    fits = [_fit(found, profile, cluster) for found in of]
    is_measured = all(fit is not None and fit.source == "measured" for fit in fits)
    return probability if is_measured or cluster.workers == 1 else 0.5 + FORMULA_TRUST * (probability - 0.5)


def print_chance(probability: float) -> str:
    """Prints a probability; no prediction is certain.

    >>> print_chance(0.95), print_chance(1.0), print_chance(0.0)
    ('95 %', 'over 99 %', 'under 1 %')
    """
    if probability > 0.99:
        return "over 99 %"
    return "under 1 %" if probability < 0.01 else f"{probability * 100:.0f} %"


def _fit(found: Prediction, profile: Profile, cluster: Cluster) -> Fit | None:
    try:
        return fit_of(found.plan, profile, cluster)
    except (PlanError, ProgramError):
        return None
