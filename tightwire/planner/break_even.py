"""Where the choice would change: at which bandwidth, latency, batch, or number of workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from tightwire.cluster import Cluster
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.planner.candidates import STOCK
from tightwire.planner.ranking import Ranking, least_gain
from tightwire.profile import Profile
from tightwire.simulate import predict
from tightwire.units import print_ms, print_rate

# How far from the present value a break-even is still looked for.
FARTHEST = 1000.0
MAX_LATENCY_S = 1.0
MOST_WORKERS = 1024
# Bandwidth is what a choice is most asked about; the others are told to two digits.
EXACT, ROUGH = 1.01, 1.05

Gains = Callable[[Profile, Cluster], bool]


def break_even(ranking: Ranking) -> Iterator[str]:
    """Yields where plain all-reduce would become as good as the choice; or, where it is the choice, worth leaving."""
    if ranking.cluster.workers == 1:
        return
    plan = contender(ranking) if ranking.stays else ranking.chosen.plan
    tolerance = 1 - least_gain(ranking.profile, ranking.stock)

    def gains(profile: Profile, cluster: Cluster) -> bool:
        stock = predict(STOCK, profile, cluster)
        return predict(plan, profile, cluster).step_s < stock.step_s * tolerance

    yield _bandwidth(ranking, plan, gains)
    others = [*_latency(ranking, gains), *_batch(ranking, gains), *_workers(ranking, gains)]
    then = f"{plan} would be worth it" if ranking.stays else "plain all-reduce would be as good"
    if others:
        yield f"Also {'; '.join(others)}, {then}."
    else:
        yield (
            f"No latency up to {print_ms(MAX_LATENCY_S)}, no batch up to {FARTHEST:,.0f} times as large, and no number "
            "of workers looked at would change that."
        )


def contender(ranking: Ranking) -> Plan:
    """Returns the plan that would win first if the wire were slower."""
    slow = ranking.cluster.scaled(1 / 30)
    # Of plans that gain nothing here the first ones do as well as all.
    plans = [row.plan for row in ranking.rows if row.plan != ranking.stock.plan][:60] or [ranking.stock.plan]
    return min(plans, key=lambda plan: predict(plan, ranking.profile, slow).step_s)


def find_change(holds: Callable[[float], bool], farthest: float, precision: float = EXACT) -> float | None:
    """Returns the factor nearest to 1 at which `holds` is not what it is at 1; None if there is none in reach.

    What turns and turns back between a factor and its double is not seen.

    Args:
        holds: of a factor of the present value.
        farthest: the last factor to look at, above or below 1.
        precision: ratio between the factor returned and one at which nothing has changed yet.
    """
    here, near = holds(1.0), 1.0
    while near != farthest:
        far = min(near * 2, farthest) if farthest > 1 else max(near / 2, farthest)
        if holds(far) != here:
            break
        near = far
    else:
        return None
    while max(near / far, far / near) > precision:
        middle = (near * far) ** 0.5
        near, far = (middle, far) if holds(middle) == here else (near, middle)
    return far


def _bandwidth(ranking: Ranking, plan: Plan, gains: Gains) -> str:
    here, cluster = ranking.cluster.bandwidth_bytes_per_s, ranking.cluster
    faster = not ranking.stays
    farthest = FARTHEST if faster else 1 / FARTHEST
    factor = find_change(lambda f: gains(ranking.profile, cluster.scaled(f)), farthest)
    if factor is None:
        who, way = ("The choice", "up") if faster else ("Plain all-reduce", "down")
        return f"{who} would stand at any bandwidth {way} to {print_rate(here * farthest)}."
    rate = print_rate(here * factor)
    if faster:
        return f"From {rate} on ({factor:.1f} times this bandwidth), plain all-reduce would be as good."
    return f"Below {rate}, {plan} would be worth it."


def _latency(ranking: Ranking, gains: Gains) -> Iterator[str]:
    """Yields at which latency of lines that are all alike; measured programs keep theirs."""
    cluster, here = ranking.cluster, ranking.cluster.latency_s
    if cluster.fits or cluster.links is not None or here <= 0 or here >= MAX_LATENCY_S:
        return

    def holds(factor: float) -> bool:
        return gains(ranking.profile, dataclasses.replace(cluster, latency_s=here * factor))

    for farthest, way in ((MAX_LATENCY_S / here, "above"), (1 / FARTHEST, "below")):
        if (factor := find_change(holds, farthest, ROUGH)) is not None:
            yield f"{way} a latency of {print_ms(here * factor)}"
            return


def _batch(ranking: Ranking, gains: Gains) -> Iterator[str]:
    """Yields how many times as large a batch, or compute per step."""

    def holds(factor: float) -> bool:
        return gains(slower(ranking.profile, factor), ranking.cluster)

    for farthest, way in ((FARTHEST, "more"), (1 / FARTHEST, "less")):
        if (factor := find_change(holds, farthest, ROUGH)) is not None:
            times = f"{factor:.2g} times" if factor < 100 else f"{factor:,.0f} times"
            yield f"with {times} the compute per step or {way}, by the size of the batch"
            return


def _workers(ranking: Ranking, gains: Gains) -> Iterator[str]:
    """Yields the nearest power of two of workers, where lines are all alike and nothing was measured."""
    cluster, here = ranking.cluster, ranking.cluster.workers
    if cluster.fits or cluster.links is not None:
        return
    now = gains(ranking.profile, cluster)
    powers = [2**power for power in range(1, MOST_WORKERS.bit_length())]
    for counts, way in (
        ([n for n in powers if n > here], "or more"),
        ([n for n in reversed(powers) if n < here], "or fewer"),
    ):
        for workers in counts:
            try:
                other = gains(
                    ranking.profile, dataclasses.replace(cluster, workers=workers, devices=None, pairs=())
                )
            except (PlanError, ProgramError):
                break
            if other != now:
                yield f"with {workers:,} workers {way}"
                break


def slower(profile: Profile, factor: float) -> Profile:
    """Returns the profile of a model that takes `factor` times as long for both passes, as by a larger batch."""
    return dataclasses.replace(
        profile,
        forward_s=profile.forward_s * factor,
        backward_s=profile.backward_s * factor,
        parameters=tuple(dataclasses.replace(p, ready_s=p.ready_s * factor) for p in profile.parameters),
    )
