"""What steps and epochs cost: the hours of all workers, and the gigabytes that leave a zone."""

from __future__ import annotations

import math

from tightwire.cluster import Cluster, Prices
from tightwire.cluster.prices import GIGABYTE
from tightwire.errors import PlanError
from tightwire.profile import Profile
from tightwire.simulate import Prediction

HOUR_S = 3600.0
MOST_SAMPLES = 10**15
NO_PRICE = (
    "nothing says what a worker costs: write --price with the price of a worker and hour, or prices in the cluster "
    "file, or take hardware whose price is known (`tightwire cluster hardware`)."
)


def require_prices(cluster: Cluster) -> Prices:
    """Returns what a cluster costs.

    Raises:
        PlanError: nobody told, with how to.
    """
    if not cluster.price_per_hour:
        raise PlanError(f"by cost: {NO_PRICE}")
    return cluster.prices or Prices()


def cost_per_step(row: Prediction, cluster: Cluster) -> float:
    """Returns what one step of all workers costs; 0 where nothing has a price.

    >>> from tightwire.planner import predict
    >>> cluster = Cluster(workers=2, bandwidth_bytes_per_s=1e9, latency_s=0.0, prices=Prices(per_worker_hour=1.8))
    >>> profile = Profile.uniform(layers=1, numel_per_layer=10, forward_s=1.0, backward_s=2.0)
    >>> round(cost_per_step(predict("bsp", profile, cluster), cluster), 4)
    0.003
    """
    traffic = row.across_bytes_per_step / GIGABYTE * cluster.prices.per_gb_across if cluster.prices else 0.0
    return row.step_s / HOUR_S * cluster.price_per_hour + traffic


def toll_s(row: Prediction, cluster: Cluster) -> float:
    """Returns for how long all workers could be had for the price of a step's traffic."""
    return HOUR_S * cost_per_step(row, cluster) / cluster.price_per_hour - row.step_s


def steps_per_epoch(profile: Profile, workers: int, samples_per_epoch: int) -> int:
    """Returns how many steps all workers make to see so many samples once.

    Raises:
        PlanError: nobody told the samples of a step, or more than anybody has.
    """
    if not 0 <= samples_per_epoch <= MOST_SAMPLES:
        raise PlanError(f"samples per epoch: {samples_per_epoch:.3g} is outside 0 … {MOST_SAMPLES:,}.")
    if not profile.samples:
        raise PlanError(
            "samples per epoch: nothing says how many samples a worker's step has; write --batch, or samples in the "
            "profile."
        )
    return math.ceil(samples_per_epoch / (profile.samples * workers))
