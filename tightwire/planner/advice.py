"""The planner's entry: the ranking of all plans, with the choice and its reasons."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from tightwire.cluster import Cluster
from tightwire.errors import PlanError
from tightwire.planner.candidates import Allowance
from tightwire.planner.explain import detail, explain
from tightwire.planner.money import steps_per_epoch
from tightwire.planner.ranking import By, Ranking, rank, usual
from tightwire.profile import Profile

Shares = Literal["equal", "speed"]


def recommend(
    profile: Profile,
    cluster: Cluster,
    *,
    allow: Allowance = "lossless",
    by: By | None = None,
    shares: Shares = "equal",
    samples_per_epoch: int = 0,
) -> Ranking:
    """Predicts every plan within the allowance, chooses one and explains the choice.

    Args:
        profile: one worker's step without exchange.
        cluster: the wire. Where programs were measured, only those compete: formulas would flatter the others.
        allow: `lossless` keeps the exact mean gradient of every step; `lossy` may change what is sent; `stale` may also
            make steps alone, with old gradients, or with some neighbours only.
        by: `step`: the fastest steps, of about equally fast ones those that change training least. `loss`: the least
            expected time to the loss that exact means reach, by how many more steps a plan was seen to need.
            `cost`: the cheapest steps, by the cluster's prices of workers and traffic. None: `loss` where steps may be
            worth less than exact ones, that is unless only `lossless` plans are allowed.
        shares: of the batch, where workers are of several kinds: `equal`, or as the cluster says; `speed`: each worker
            gets what it computes in the same time.
        samples_per_epoch: to tell what an epoch takes and costs; 0: nothing is told.

    Raises:
        PlanError: an unknown allowance, comparison or way to share, no price to go by, or an epoch of a step whose
            samples nobody told.

    >>> profile = Profile.uniform(layers=8, numel_per_layer=100_000, forward_s=0.1, backward_s=0.2)
    >>> recommend(profile, Cluster.uniform(4, 10e9, 1e-6)).stays
    True
    """
    for option, value, known in (("by", by, (None, *get_args(By))), ("shares", shares, get_args(Shares))):
        if value not in known:
            raise PlanError(f"{option}={value!r} is not known; known: {', '.join(filter(None, known))}.")
    if samples_per_epoch:
        steps_per_epoch(profile, cluster.workers, samples_per_epoch)  # refused before anything is predicted
    shared = cluster.balanced() if shares == "speed" else cluster
    ranking = dataclasses.replace(
        rank(profile, shared, allow, by or usual(allow)), samples_per_epoch=samples_per_epoch
    )
    return explained(ranking)


def explained(ranking: Ranking, *, turns: bool = True) -> Ranking:
    """Returns a ranking with the reasons of its choice; `turns`: and with what would change it, which takes longer."""
    return dataclasses.replace(
        ranking, why=tuple(explain(ranking, turns=turns)), details=tuple(detail(ranking))
    )
