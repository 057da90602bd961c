"""Predicts a plan: the entry that all commands go through, and what all ways of keeping in step share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tightwire.architecture import Gossip, ParameterServer
from tightwire.cluster import Cluster
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.simulate.bulk import predict_bulk
from tightwire.simulate.gossip import predict_gossip
from tightwire.simulate.prediction import Prediction
from tightwire.simulate.rounds import predict_delayed, predict_rounds
from tightwire.simulate.servers import predict_served
from tightwire.simulate.stragglers import paced
from tightwire.sync.sync import PredictorKind


def predict(plan: Plan | str, profile: Profile, cluster: Cluster, *, quick: bool = False) -> Prediction:
    """Predicts the step time of a plan, with an interval and reasons.

    Compute runs as profiled; where workers share cores, it loses the processor time of what moves meanwhile. Of N
    workers whose compute varies as profiled, or as the kinds of workers say that the cluster has, the slowest sets the
    pace of all who wait for it. Pieces of buckets move
    in the order that the plan's own scheduler decides; a piece costs encoding, α + β · bytes of its program, decoding.
    A policy that changes in the course of training is predicted for the long run; what a policy sends only when it is
    worth it (lag, gaia) is counted as sent.

    Args:
        plan: a plan or its text.
        profile: one worker's step without exchange.
        cluster: the wire; programs that were not measured are priced by the cluster's links, or by formula.
        quick: whether pieces are ordered by Jackson's rule alone, without trying for a better order: within a per cent
            or two, several times as fast; for sweeps.

    Raises:
        PlanError: the plan cannot be read, cannot be had on this cluster, or cannot be predicted yet; or the model does
            not fit the memory of the devices.

    >>> profile = Profile.uniform(layers=4, numel_per_layer=250_000, forward_s=0.1, backward_s=0.2)
    >>> predict("bsp/allreduce:ring", profile, Cluster.uniform(4, 12.5e6, 1e-4)).bound_by
    'wire'
    """
    asked = Plan.parse(plan) if isinstance(plan, str) else plan
    require_memory(profile, cluster)
    profile = paced(profile, cluster)
    final, _ = asked.sync.stretches()[-1]
    lasting = asked if final == asked.sync else asked.having(sync=final)
    predictor = _predictor(lasting)
    if predictor is predict_bulk:
        found = predict_bulk(lasting, profile, cluster, quick=quick)
    else:
        found = predictor(lasting, profile, cluster)
    return dataclasses.replace(found, plan=asked)


def _predictor(plan: Plan) -> Callable[[Plan, Profile, Cluster], Prediction]:
    """Returns what predicts a plan: by its architecture where that sets the pace, else as its policy declares."""
    architecture, sync = plan.architecture, plan.sync
    if isinstance(architecture, Gossip):
        return predict_gossip
    if isinstance(architecture, ParameterServer) and architecture.servers > 0:
        return predict_served
    return PREDICTORS[sync.predictor]


PREDICTORS: dict[PredictorKind, Callable[[Plan, Profile, Cluster], Prediction]] = {
    "bulk": predict_bulk,
    "delayed": predict_delayed,
    "rounds": predict_rounds,
    "server": predict_served,
}


def require_memory(profile: Profile, cluster: Cluster) -> None:
    """Makes sure that a model fits the devices.

    Raises:
        PlanError: it does not; with both sizes.
    """
    has, needs = cluster.device_memory_bytes, profile.least_memory_bytes
    if has is not None and needs > has:
        raise PlanError(
            f"the model does not fit: a worker must hold {needs / 1e9:.1f} GB and a device has {has / 1e9:.1f} GB. "
            "`tightwire parallel MODEL --cluster FILE` finds how to cut a transformer (sharding, tensor, pipeline and "
            "other parallelism); else take larger devices. No time is predicted."
        )
