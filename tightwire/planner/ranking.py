"""Predicts every candidate, picks one, and keeps the rest to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tightwire.cluster import Cluster
from tightwire.plan import Plan, PlanFile
from tightwire.planner.candidates import STOCK, Allowance, candidates, departures, harm
from tightwire.profile import Profile
from tightwire.simulate import Prediction, fit_of, predict

# Below this, a predicted gain is not worth leaving what everybody knows.
LEAST_GAIN = 0.02
# Of lossy plans this close to the fastest, the one that changes least of what is learnt from is taken.
SAME_CLASS = 0.10


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Plans by predicted step time, the chosen one, and why.

    Attributes:
        profile: what the predictions were made from.
        cluster: likewise.
        allow: what the user allowed.
        rows: every candidate's prediction, fastest first.
        chosen: the one to train with.
        stock: plain all-reduce, as DistributedDataParallel does it.
        why: sentences with numbers.
    """

    profile: Profile
    cluster: Cluster
    allow: Allowance
    rows: tuple[Prediction, ...]
    chosen: Prediction
    stock: Prediction
    why: tuple[str, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether the advice is to stay with plain all-reduce."""
        return self.chosen.plan == self.stock.plan

    def plan_file(self) -> PlanFile:
        """Returns the chosen plan with what it was derived from, what is expected of it, and why."""
        return PlanFile(
            plan=self.chosen.plan,
            measured={
                "profile": dataclasses.asdict(self.profile),
                "cluster": dataclasses.asdict(self.cluster),
            },
            predicted=summary(self.chosen),
            why=self.why,
        )


def recommend(profile: Profile, cluster: Cluster, *, allow: Allowance = "lossless") -> Ranking:
    """Predicts every plan within the allowance, chooses one and explains the choice.

    Args:
        profile: one worker's step without exchange.
        cluster: the wire. Where programs were measured, only those compete: formulas would flatter the others.
        allow: `lossless` keeps the exact mean gradient of every step; `lossy` may change what is sent.

    Raises:
        PlanError: an unknown allowance.

    >>> profile = Profile.uniform(layers=8, numel_per_layer=100_000, forward_s=0.1, backward_s=0.2)
    >>> recommend(profile, Cluster.uniform(4, 10e9, 1e-6)).stays
    True
    """
    from tightwire.planner.explain import explain

    ranking = rank(profile, cluster, allow)
    return dataclasses.replace(ranking, why=tuple(explain(ranking)))


def rank(profile: Profile, cluster: Cluster, allow: Allowance) -> Ranking:
    """Returns the ranking without its reasons."""
    plans = [plan for plan in candidates(profile.num_bytes, allow) if _competes(plan, profile, cluster)]
    predicted = sorted(
        ((predict(plan, profile, cluster), plan) for plan in plans), key=lambda row: row[0].step_s
    )
    stock = predict(STOCK, profile, cluster)
    return Ranking(
        profile=profile,
        cluster=cluster,
        allow=allow,
        rows=tuple(prediction for prediction, _ in predicted),
        chosen=_choose(predicted, stock, least_gain(profile, stock)),
        stock=stock,
    )


def least_gain(profile: Profile, stock: Prediction) -> float:
    """Returns the gain, as a share of plain all-reduce's step, below which steps cannot be told apart."""
    return max(LEAST_GAIN, profile.noise * profile.compute_s / stock.step_s)


def summary(prediction: Prediction) -> dict[str, Any]:
    """Returns a prediction as plain values, without its critical path."""
    values = dataclasses.asdict(prediction)
    del values["critical_path"]
    return values


def _competes(plan: Plan, profile: Profile, cluster: Cluster) -> bool:
    return not cluster.fits or departures(plan) == 0 or fit_of(plan, profile, cluster).source == "measured"


def _choose(predicted: Sequence[tuple[Prediction, Plan]], stock: Prediction, least_gain: float) -> Prediction:
    fastest_s = predicted[0][0].step_s
    equals = [row for row in predicted if row[0].step_s <= fastest_s * (1 + SAME_CLASS)]
    least_harm = min(harm(plan) for _, plan in equals)
    harmless = [row for row in equals if harm(row[1]) == least_harm]
    as_good_s = harmless[0][0].step_s * (1 + LEAST_GAIN)
    best, _ = min(
        (row for row in harmless if row[0].step_s <= as_good_s),
        key=lambda row: (departures(row[1]), row[0].step_s),
    )
    return best if best.step_s < stock.step_s * (1 - least_gain) else stock
