"""The planner's entry: the ranking of all plans, with the choice and its reasons."""

from __future__ import annotations

import dataclasses

from tightwire.cluster import Cluster
from tightwire.planner.candidates import Allowance
from tightwire.planner.explain import detail, explain
from tightwire.planner.ranking import By, Ranking, rank
from tightwire.profile import Profile


def recommend(
    profile: Profile, cluster: Cluster, *, allow: Allowance = "lossless", by: By = "step"
) -> Ranking:
    """Predicts every plan within the allowance, chooses one and explains the choice.

    Args:
        profile: one worker's step without exchange.
        cluster: the wire. Where programs were measured, only those compete: formulas would flatter the others.
        allow: `lossless` keeps the exact mean gradient of every step; `lossy` may change what is sent; `stale` may also
            make steps alone, with old gradients, or with some neighbours only.
        by: `step`: the fastest steps, of about equally fast ones those that change training least. `loss`: the least
            expected time to the loss that exact means reach, by how many more steps a plan was seen to need.

    Raises:
        PlanError: an unknown allowance.

    >>> profile = Profile.uniform(layers=8, numel_per_layer=100_000, forward_s=0.1, backward_s=0.2)
    >>> recommend(profile, Cluster.uniform(4, 10e9, 1e-6)).stays
    True
    """
    ranking = rank(profile, cluster, allow, by)
    return dataclasses.replace(ranking, why=tuple(explain(ranking)), details=tuple(detail(ranking)))
