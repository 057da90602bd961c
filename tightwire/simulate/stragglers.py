"""Who waits for whom: how late the slowest of several workers is, or those that a round does not do without.

Workers that are all alike are late by their noise, which is taken to be normal: their order statistics have a formula.
Workers of several kinds (a slow device, a larger share of the batch, delays as measured) are drawn many times from one
fixed seed instead, and the mean over draws is what a step is expected to take.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tightwire.cluster import Cluster, WorkerKind
from tightwire.profile import Profile

DRAWS, SEED = 2000, 11
# Of many workers fewer draws say as much.
MOST_DRAWN = 200_000


def slowest_delay(workers: int) -> float:
    """Returns how many standard deviations the slowest of N equal workers is expected to be late (Blom 1958).

    >>> [round(slowest_delay(n), 2) for n in (1, 4, 64)]
    [0.0, 1.05, 2.34]
    """
    return expected_delay(workers, workers)


def expected_delay(place: int, workers: int) -> float:
    """Returns how many standard deviations the worker that comes in at `place` of N is expected to be late.

    >>> round(expected_delay(3, 4), 2), expected_delay(2, 3)
    (0.3, 0.0)
    """
    return statistics.NormalDist().inv_cdf((place - 0.375) / (workers + 0.25))


def paced(profile: Profile, cluster: Cluster) -> Profile:
    """Returns the profile of the worker that computes for longest: the slowest for its share of the batch."""
    if not cluster.kinds:
        return profile
    passes = max(kind.batch_share / kind.speed for kind in cluster.kinds)
    steps = max(1 / kind.speed for kind in cluster.kinds)
    if passes == steps == 1.0:
        return profile
    return dataclasses.replace(
        profile,
        forward_s=profile.forward_s * passes,
        backward_s=profile.backward_s * passes,
        optimizer_s=profile.optimizer_s * steps,
        parameters=tuple(dataclasses.replace(p, ready_s=p.ready_s * passes) for p in profile.parameters),
    )


def late_s(
    profile: Profile, cluster: Cluster, *, steps: int = 1, place: int | None = None, ranks: int | None = None
) -> float:
    """Returns how much later than its undisturbed compute the worker comes in for whom a round waits.

    Args:
        profile: of the worker that computes for longest (see `paced`).
        cluster: with the kinds of workers, if they are not alike.
        steps: made alone before the round, whose delays average out.
        place: of the worker that is waited for: the last one unless told; 0: nobody is waited for, and each worker goes
            on at its own pace.
        ranks: how many of the cluster's ranks train, the first ones; all unless told.

    Returns:
        Seconds per round; below 0 where a round does not wait for the slowest kind.
    """
    workers = ranks or cluster.workers
    last = workers if place is None else place
    if cluster.kinds:
        relative = _drawn(_trains(cluster.kinds, workers), profile.noise, steps, last)
        return relative * profile.compute_s
    if not last:
        return 0.0
    late = expected_delay(last, workers) * profile.noise * profile.compute_s * math.sqrt(steps)
    return late if place is None else max(0.0, late)


def _trains(kinds: Sequence[WorkerKind], workers: int) -> tuple[WorkerKind, ...]:
    found, left = list[WorkerKind](), workers
    for kind in kinds:
        if left > 0:
            found.append(dataclasses.replace(kind, workers=min(left, kind.workers)))
            left -= kind.workers
    return tuple(found)


@lru_cache(maxsize=1024)
def _drawn(kinds: tuple[WorkerKind, ...], noise: float, steps: int, place: int) -> float:
    """Returns how late the worker at `place` is, in computes of the slowest kind."""
    slowest = max(kind.batch_share / kind.speed for kind in kinds)
    bases = [kind.batch_share / kind.speed / slowest for kind in kinds]
    if not place:
        each = [base * _mean(kind) for kind, base in zip(kinds, bases, strict=True)]
        rate = sum(kind.workers / base for kind, base in zip(kinds, each, strict=True))
        return steps * (sum(kind.workers for kind in kinds) / rate - 1)
    workers = sum(kind.workers for kind in kinds)
    draws = max(50, min(DRAWS, MOST_DRAWN // workers))
    generator = np.random.default_rng(SEED)
    times = np.concatenate(
        [
            base * _times(generator, kind, noise, steps, (draws, kind.workers))
            for kind, base in zip(kinds, bases, strict=True)
        ],
        axis=1,
    )
    return float(np.partition(times, place - 1, axis=1)[:, place - 1].mean()) - steps


def _times(
    generator: np.random.Generator, kind: WorkerKind, noise: float, steps: int, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Draws how long so many steps take, in undisturbed steps; many delays add up to a normal one."""
    if kind.delays and steps == 1:
        return generator.choice(np.array(kind.delays), shape)
    spread = float(np.std(kind.delays)) if kind.delays else noise
    return steps * _mean(kind) + math.sqrt(steps) * spread * generator.standard_normal(shape)


def _mean(kind: WorkerKind) -> float:
    return statistics.fmean(kind.delays) if kind.delays else 1.0
