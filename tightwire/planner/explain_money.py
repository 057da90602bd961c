"""What a plan costs, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from tightwire.cluster import Prices
from tightwire.cluster.prices import GIGABYTE
from tightwire.planner.money import HOUR_S, cost_per_step, steps_per_epoch
from tightwire.planner.ranking import Ranking
from tightwire.planner.scaling import Scaling, Usage
from tightwire.units import print_size

A_MILLION = 1e6


def explain_cost(ranking: Ranking, scaling: Scaling | None) -> Iterator[str]:
    """Yields what steps, samples and an epoch cost with all workers, and which number of them costs least."""
    cluster, chosen = ranking.cluster, ranking.chosen
    if not cluster.price_per_hour:
        return
    prices = cluster.prices or Prices()
    each = cluster.price_per_hour / cluster.workers
    told = f"At {prices.show(each)} per worker and hour"
    if cluster.charges_traffic:
        told += f" and {prices.show(prices.per_gb_across)} per GB that leaves a zone"
    if prices.origin:
        told += f" ({prices.origin})"
    said = [f"a thousand steps cost {prices.show(1000 * cost_per_step(chosen, cluster))}"]
    if cluster.charges_traffic:
        traffic = 1000 * chosen.across_bytes_per_step / GIGABYTE * prices.per_gb_across
        said[0] += f" ({prices.show(traffic)} of it for {print_size(chosen.across_bytes_per_step)} a step)"
    if scaling is not None:
        what = "samples" if ranking.profile.samples else "batches"
        said.append(f"a million {what} {prices.show(_of_a_million(ranking, scaling.chosen))}")
        least = scaling.cheapest
        if least.workers != scaling.chosen.workers:
            said[-1] += f" ({prices.show(_of_a_million(ranking, least))} with {_count(least.workers)})"
    yield f"{told}, {', '.join(said)}."
    if ranking.samples_per_epoch:
        steps = steps_per_epoch(ranking.profile, cluster.workers, ranking.samples_per_epoch)
        hours = steps * chosen.step_s / HOUR_S
        yield (
            f"An epoch of {ranking.samples_per_epoch:,} samples is {steps:,} steps, takes {hours:.3g} hours and costs "
            f"{prices.show(steps * cost_per_step(chosen, cluster))}; by plain all-reduce "
            f"{prices.show(steps * cost_per_step(ranking.stock, cluster))}."
        )


def _of_a_million(ranking: Ranking, usage: Usage) -> float:
    return usage.cost_per_pass * A_MILLION / (ranking.profile.samples or 1)


def _count(workers: int) -> str:
    return "one worker alone" if workers == 1 else f"{workers} workers"
