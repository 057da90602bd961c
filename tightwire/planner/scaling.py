"""What so many workers are worth against fewer, against one alone, and with more work between two exchanges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tightwire.cluster import Adding, Cluster, Level, WorkerKind
from tightwire.cluster.workers import first_of
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.planner.money import cost_per_step
from tightwire.planner.ranking import Ranking
from tightwire.profile import Profile
from tightwire.simulate import Prediction, predict

# How many passes between two exchanges are looked at.
ACCUMULATED = (2, 4, 8, 16, 32)
# How many of the ranking's plans are tried beside the chosen one and plain all-reduce.
TRIED = 4


@dataclass(frozen=True, kw_only=True)
class Usage:
    """One way to use workers.

    Attributes:
        workers: how many.
        passes: forward and backward passes of each worker per step; more than one accumulates gradients.
        prediction: of a step.
        cost_per_step: of all of them, traffic included; 0: nobody told a price.
    """

    workers: int
    passes: int
    prediction: Prediction
    cost_per_step: float = 0.0

    @property
    def passes_per_s(self) -> float:
        """Passes of all workers together; times the samples of a pass, it is samples per second."""
        return self.workers * self.passes / self.prediction.step_s

    @property
    def cost_per_pass(self) -> float:
        """What a pass of one worker costs; as its share of all workers where nobody told a price."""
        return (self.cost_per_step or self.prediction.step_s * self.workers) / (self.passes * self.workers)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The workers of a ranking against other ways to use them.

    Attributes:
        alone: one worker, no exchange.
        chosen: all workers with the chosen plan.
        fewer: fewer workers, each number with the best of a few plans.
        accumulating: all workers, with several passes between two exchanges.
        pass_s: one worker's forward and backward pass.
    """

    alone: Usage
    chosen: Usage
    fewer: tuple[Usage, ...]
    accumulating: tuple[Usage, ...]
    pass_s: float

    @property
    def speed_up(self) -> float:
        """How many times as much as one worker all do together."""
        return self.chosen.passes_per_s / self.alone.passes_per_s

    @property
    def efficiency(self) -> float:
        """That over the number of workers."""
        return self.speed_up / self.chosen.workers

    def times_alone(self, usage: Usage) -> float:
        """Returns how many times as much as one worker another use does, accumulating as much."""
        alone_s = self.alone.prediction.step_s + (usage.passes - 1) * self.pass_s
        return usage.passes_per_s * alone_s / usage.passes

    @property
    def cheapest(self) -> Usage:
        """The way in which a pass costs least, with one pass per step."""
        return min((self.alone, *self.fewer, self.chosen), key=lambda usage: usage.cost_per_pass)

    @property
    def best_fewer(self) -> Usage:
        """The fewest workers that do the most, within 2 %; one worker alone among them."""
        most = max(usage.passes_per_s for usage in (self.alone, *self.fewer))
        return next(usage for usage in (self.alone, *self.fewer) if usage.passes_per_s >= 0.98 * most)


def scaling_of(ranking: Ranking) -> Scaling:
    """Predicts the other ways to use the workers of a ranking."""
    profile, cluster, chosen = ranking.profile, ranking.cluster, ranking.chosen
    plans = list(dict.fromkeys(row.plan for row in (chosen, ranking.stock, *ranking.shortlist[:TRIED])))
    alone = _best(plans[:2], profile, smaller(cluster, 1), 1)
    assert alone is not None
    parts = [smaller(cluster, n) for n in _counts(cluster)]
    if (rest := without_slowest(cluster)) is not None:
        parts = sorted([*parts, rest], key=lambda part: part.workers)
    fewer = (_best(plans, profile, part, 1) for part in parts)
    accumulating = (_best(plans, accumulated(profile, k), cluster, k) for k in ACCUMULATED)
    return Scaling(
        alone=alone,
        chosen=Usage(
            workers=cluster.workers,
            passes=1,
            prediction=chosen,
            cost_per_step=cost_per_step(chosen, cluster),
        ),
        fewer=tuple(usage for usage in fewer if usage),
        accumulating=tuple(usage for usage in accumulating if usage),
        pass_s=profile.forward_s + profile.backward_s,
    )


def accumulated(profile: Profile, passes: int) -> Profile:
    """Returns the profile of a step that accumulates the gradients of several passes.

    Of all passes but the last nothing travels: they are as if forward took longer.
    """
    before_s = (passes - 1) * (profile.forward_s + profile.backward_s)
    return dataclasses.replace(profile, forward_s=profile.forward_s + before_s)


def smaller(cluster: Cluster, workers: int) -> Cluster:
    """Returns a part of a cluster: its first workers, joined as all are, of which programs were not measured.

    Raises:
        PlanError: a number that cuts a group of workers in two, or the part of a graph.
    """
    plain = Cluster(
        workers=workers,
        bandwidth_bytes_per_s=cluster.bandwidth_bytes_per_s,
        latency_s=cluster.latency_s,
        device_memory_bytes=cluster.device_memory_bytes,
        kinds=first_of(cluster.kinds, workers),
        prices=cluster.prices,
        nccl=cluster.nccl,
        over=cluster.over,
        adding=None if cluster.levels else cluster.adding,
    )
    if workers == 1 or not (cluster.levels or cluster.graph):
        return plain
    levels = []
    for level in cluster.levels:
        levels.append(dataclasses.replace(level, workers=min(level.workers, workers)))
        if level.workers >= workers:
            break
    if not levels or any(workers % level.workers for level in levels):
        raise PlanError(f"{workers} workers are no whole groups of this cluster.")
    return dataclasses.replace(
        plain,
        levels=tuple(levels),
        bandwidth_bytes_per_s=min(level.bandwidth_bytes_per_s for level in levels),
        latency_s=sum(level.latency_s for level in levels),
        adding=_adding(cluster, levels),
    )


def _adding(cluster: Cluster, levels: Sequence[Level]) -> Adding | None:
    """Returns which switches add in the part of a cluster that has these of its levels; None: none does."""
    adding, whole = cluster.adding, len(levels) == len(cluster.levels)
    if adding is None or not adding.levels:
        return adding if whole else None  # where no level is named, the outermost one adds
    names = tuple(level.name for level in levels if level.name in adding.levels)
    return dataclasses.replace(adding, levels=names) if names else None


def without_slowest(cluster: Cluster) -> Cluster | None:
    """Returns a cluster without the kind of workers that holds the others up for longest; None where links are given.

    By computing where it differs, else by the line.
    """
    if len(cluster.kinds) < 2 or cluster.levels or cluster.graph:
        return None
    paces = {kind.batch_share / kind.speed for kind in cluster.kinds}

    def held_up(kind: WorkerKind) -> float:
        if len(paces) > 1:
            return kind.batch_share / kind.speed
        return -(kind.bandwidth_bytes_per_s or cluster.bandwidth_bytes_per_s)

    slowest = max(cluster.kinds, key=held_up)
    kinds = tuple(kind for kind in cluster.kinds if kind is not slowest)
    workers = sum(kind.workers for kind in kinds)
    return dataclasses.replace(
        cluster,
        workers=workers,
        kinds=first_of(kinds, workers),
        fits=(),
        pairs=(),
        bandwidth_bytes_per_s=min(k.bandwidth_bytes_per_s or cluster.bandwidth_bytes_per_s for k in kinds),
    )


def _counts(cluster: Cluster) -> Iterator[int]:
    """Yields numbers of workers below all: whole groups where there are levels, else powers of two."""
    counts = {level.workers for level in cluster.levels}
    if not cluster.graph:
        counts |= {2**power for power in range(1, 20)}
    yield from sorted(n for n in counts if 1 < n < cluster.workers)


def _best(plans: Sequence[Plan], profile: Profile, cluster: Cluster, passes: int) -> Usage | None:
    found = []
    for plan in plans:
        try:
            found.append(predict(plan, profile, cluster, quick=True))
        except (PlanError, ProgramError):
            continue
    if not found:
        return None
    fastest = min(found, key=lambda row: row.step_s)
    return Usage(
        workers=cluster.workers,
        passes=passes,
        prediction=fastest,
        cost_per_step=cost_per_step(fastest, cluster),
    )
