"""What follows from workers that are not alike, in sentences: whose batch is larger, and who sends less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tightwire.cluster import Cluster, WorkerKind
from tightwire.errors import PlanError, ProgramError
from tightwire.planner.bounds import collective_of_plan
from tightwire.planner.ranking import Ranking
from tightwire.simulate import predict
from tightwire.units import print_ms, print_rate, print_size

# Steps that differ by less are alike.
WORTH_TELLING = 1.02


def explain_workers(ranking: Ranking) -> Iterator[str]:
    """Yields how the batch is to be shared among workers of several speeds, and what lines of several rates carry."""
    kinds = ranking.cluster.kinds
    if len(kinds) < 2:
        return
    yield from _shares(ranking)
    if ranking.cluster.has_own_lines:
        yield from _sent(ranking)


def batch_shares(cluster: Cluster, samples: int) -> dict[str, float]:
    """Returns what each worker of a kind trains on: samples where a step's are known, else shares of 1 on average."""
    return {
        kind.name: round(samples * kind.batch_share) if samples else round(kind.batch_share, 3)
        for kind in cluster.kinds
    }


def _shares(ranking: Ranking) -> Iterator[str]:
    cluster, profile = ranking.cluster, ranking.profile
    fair = cluster.balanced()
    now_s = ranking.chosen.step_s
    try:
        fair_s = predict(ranking.chosen.plan, profile, fair).step_s
    except (PlanError, ProgramError):
        return
    alike = [kind.batch_share for kind in fair.kinds] == [kind.batch_share for kind in cluster.kinds]
    if alike and len({kind.speed for kind in cluster.kinds}) == 1:
        return
    if alike or now_s < WORTH_TELLING * fair_s:
        if all(kind.batch_share == 1.0 for kind in cluster.kinds):
            return  # something else holds them up
        yield f"The batch is shared out so: {_told(cluster, profile.samples)}; tell each share by run.weigh(samples)."
        return
    slowest = max(cluster.kinds, key=lambda kind: kind.batch_share / kind.speed)
    yield (
        f"Workers are not alike, and all wait for {slowest.name}: with the batch shared by speed, "
        f"{_told(fair, profile.samples)}, told by run.weigh(samples), a step of as many samples takes "
        f"{print_ms(fair_s)} instead of {print_ms(now_s)} (--shares speed plans for that)."
    )


def _told(cluster: Cluster, samples: int) -> str:
    of = " samples" if samples else " times the batch"
    shares = batch_shares(cluster, samples)
    return ", ".join(f"{share:g}{of} for each {name}" for name, share in shares.items())


def _sent(ranking: Ranking) -> Iterator[str]:
    """Yields what the workers of each kind send by the chosen plan's program: slow lines may be asked for less."""
    try:
        found = collective_of_plan(ranking.chosen.plan, ranking.profile, ranking.cluster)
    except (PlanError, ProgramError):
        return
    if found.program is None:
        return
    sends = Counter(t.src for t in found.program.transfers)
    most = max(sends.values(), default=0)
    if not most:
        return
    parts, first = [], 0
    for kind in ranking.cluster.kinds:
        mean = sum(sends[rank] for rank in range(first, first + kind.workers)) / kind.workers
        first += kind.workers
        size = print_size(round(ranking.chosen.bytes_per_step * mean / most))
        parts.append(f"each {kind.name} ({_rate(kind, ranking.cluster)}) {size}")
    yield f"In a step {', '.join(parts)}: that is what the plan asks each kind to send."


def _rate(kind: WorkerKind, cluster: Cluster) -> str:
    return print_rate(kind.bandwidth_bytes_per_s or cluster.inner_bytes_per_s)
