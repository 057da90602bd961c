"""Where the choice would change: at which bandwidth, latency, batch, or number of workers.

At every point that is looked at, all plans of a pool are predicted, and one is chosen as the ranking chooses: so the
plan that is named at a turn is one that the planner would choose there. The pool holds the fastest plans of the ranking
here and on a much slower wire, each way of keeping in step, architecture and compression once. Points are a factor of
two apart, and what turns and turns back between two of them is not seen; a sentence says which points were checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tightwire.cluster import Cluster
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.planner.candidates import departures, stock_plan
from tightwire.planner.ranking import By, Ranking, choose_by, kind_of
from tightwire.planner.scaling import smaller
from tightwire.profile import Profile
from tightwire.simulate import Prediction, predict
from tightwire.units import print_ms, print_rate

# How far from the present value a turn is still looked for.
FARTHEST = 1000.0
MAX_LATENCY_S = 1.0
MOST_WORKERS = 1024
# Bandwidth is what a choice is most asked about; the others are told to two digits.
EXACT, ROUGH = 1.02, 1.05
# How many plans are predicted at every point, and how many of a ranking's are tried on a slow wire to find them.
POOL, TRIED = 5, 24
SLOW_WIRE = 1 / 30


def break_even(ranking: Ranking) -> tuple[str, ...]:
    """Returns at which bandwidth another plan would be chosen, and then of latency, batch and workers."""
    if ranking.cluster.workers == 1:
        return ()
    pool = pool_of(ranking)
    return tuple(sentence for look in (_bandwidth, _others) for sentence in look(ranking, pool))


def pool_of(ranking: Ranking) -> tuple[Plan, ...]:
    """Returns the plans among which a choice is made elsewhere: the chosen one, plain all-reduce, each kind's best."""
    slow = ranking.cluster.scaled(SLOW_WIRE)
    there = sorted(_predicted([row.plan for row in ranking.rows[:TRIED]], ranking.profile, slow), key=_step_s)
    plans = {
        kind_of(ranking.stock.plan): ranking.stock.plan,
        kind_of(ranking.chosen.plan): ranking.chosen.plan,
    }
    for row in (*ranking.rows, *there):
        plans.setdefault(kind_of(row.plan), row.plan)
    best = [row.plan for row in there[:2]]
    return tuple(dict.fromkeys([stock_plan(), ranking.chosen.plan, *best, *plans.values()]))[:POOL]


@dataclass(frozen=True)
class BreakEven:
    """Where another plan would be chosen.

    Attributes:
        factor: of the present value, nearest to 1; None: at none of the points looked at.
        plan: what would be chosen there.
        last: the last factor that was looked at.
    """

    factor: float | None
    plan: Plan
    last: float


def find_change(
    choice: Callable[[float], Plan], farthest: float, precision: float = EXACT, start: float = 1.0
) -> BreakEven:
    """Returns the factor nearest to `start` at which another plan is chosen.

    Args:
        choice: the plan that would be chosen at a factor of the present value.
        farthest: the last factor to look at, above or below `start`.
        precision: ratio between the factor returned and one at which nothing has changed yet.
        start: where to begin.
    """
    here, near = choice(start), start
    while near != farthest:
        far = min(near * 2, farthest) if farthest > start else max(near / 2, farthest)
        if (there := choice(far)) != here:
            break
        near = far
    else:
        return BreakEven(None, here, farthest)
    while max(near / far, far / near) > precision:
        middle = (near * far) ** 0.5
        found = choice(middle)
        if found == here:
            near = middle
        else:
            far, there = middle, found
    return BreakEven(far, there, far)


def chosen_among(plans: Sequence[Plan], profile: Profile, cluster: Cluster, by: By = "step") -> Plan:
    """Returns what the planner would choose of some plans, stock PyTorch's plan among them; kinds by their first plan.

    A plan that differs from another in settings alone counts as the same, for which a turn tells nothing.
    """
    rows = sorted(_predicted(plans, profile, cluster), key=_step_s)
    stock = next(row for row in rows if departures(row.plan) == 0)
    found = choose_by(by, rows, stock, profile, cluster).plan
    if departures(found) == 0:
        return found
    return next(plan for plan in plans if departures(plan) and kind_of(plan) == kind_of(found))


def _bandwidth(ranking: Ranking, pool: Sequence[Plan]) -> Iterator[str]:
    here = ranking.cluster.bandwidth_bytes_per_s
    turns = [
        find_change(
            lambda f: chosen_among(pool, ranking.profile, ranking.cluster.scaled(f), ranking.by), farthest
        )
        for farthest in (FARTHEST, 1 / FARTHEST)
    ]
    said = [
        f"{'from' if turn.factor > 1 else 'below'} {print_rate(here * turn.factor)} a line "
        f"({_times(turn.factor)} the present rate) {_name(turn.plan)}"
        for turn in turns
        if turn.factor is not None
    ]
    if said:
        yield f"What would change it: {', and '.join(said)} would be chosen."
    else:
        low, high = (print_rate(here * turn.last) for turn in reversed(turns))
        yield f"At every bandwidth checked, from {low} to {high} in steps of two, the choice stands."


def _others(ranking: Ranking, pool: Sequence[Plan]) -> Iterator[str]:
    found = [*_latency(ranking, pool), *_compute(ranking, pool), *_workers(ranking, pool)]
    if turns := [text for turned, text in found if turned]:
        yield f"Also {'; '.join(turns)}."
    if stands := [text for turned, text in found if not turned]:
        yield f"It stands {', '.join(stands)}, as far as was checked."


def _latency(ranking: Ranking, pool: Sequence[Plan]) -> Iterator[tuple[bool, str]]:
    """Yields at which latency of lines that are all alike; measured programs keep theirs."""
    cluster, here = ranking.cluster, ranking.cluster.latency_s
    if cluster.fits or cluster.links is not None or not 0 < here < MAX_LATENCY_S:
        return

    def choice(factor: float) -> Plan:
        slower = dataclasses.replace(cluster, latency_s=here * factor)
        return chosen_among(pool, ranking.profile, slower, ranking.by)

    turn = find_change(choice, MAX_LATENCY_S / here, ROUGH)
    if turn.factor is None:
        yield False, f"up to a latency of {print_ms(MAX_LATENCY_S)}"
    else:
        yield True, f"above a latency of {print_ms(here * turn.factor)} {_name(turn.plan)}"


def _compute(ranking: Ranking, pool: Sequence[Plan]) -> Iterator[tuple[bool, str]]:
    """Yields how many times as large a batch, or compute per step."""
    turns = [
        find_change(
            lambda f: chosen_among(pool, slower(ranking.profile, f), ranking.cluster, ranking.by),
            farthest,
            ROUGH,
        )
        for farthest in (FARTHEST, 1 / FARTHEST)
    ]
    said = [
        f"with {_times(turn.factor)} the compute per step or {'more' if turn.factor > 1 else 'less'}, as by another "
        f"batch, {_name(turn.plan)}"
        for turn in turns
        if turn.factor is not None
    ]
    for text in said[:1]:
        yield True, text
    if not said:
        yield False, f"with {FARTHEST:,.0f} times the compute per step and with 1/{FARTHEST:,.0f}"


def _workers(ranking: Ranking, pool: Sequence[Plan]) -> Iterator[tuple[bool, str]]:
    """Yields the nearest power of two of workers, where lines are all alike and nothing was measured."""
    cluster, here = ranking.cluster, ranking.cluster.workers
    if cluster.fits or cluster.kinds or cluster.links is not None:
        return
    now = chosen_among(pool, ranking.profile, cluster, ranking.by)
    powers = [2**power for power in range(1, MOST_WORKERS.bit_length())]
    for counts, way in (
        ([n for n in powers if n > here], "or more"),
        ([n for n in reversed(powers) if n < here], "or fewer"),
    ):
        for workers in counts:
            other = chosen_among(pool, ranking.profile, smaller(cluster, workers), ranking.by)
            if other != now:
                yield True, f"with {workers:,} workers {way} {_name(other)}"
                break


def slower(profile: Profile, factor: float) -> Profile:
    """Returns the profile of a model that takes `factor` times as long for both passes, as by a larger batch."""
    return dataclasses.replace(
        profile,
        forward_s=profile.forward_s * factor,
        backward_s=profile.backward_s * factor,
        parameters=tuple(dataclasses.replace(p, ready_s=p.ready_s * factor) for p in profile.parameters),
    )


def _predicted(plans: Sequence[Plan], profile: Profile, cluster: Cluster) -> list[Prediction]:
    found = []
    for plan in plans:
        try:
            found.append(predict(plan, profile, cluster, quick=True))
        except (PlanError, ProgramError):
            continue
    return found


def _step_s(row: Prediction) -> float:
    return row.step_s


def _name(plan: Plan) -> str:
    return "plain all-reduce" if departures(plan) == 0 else str(plan)


def _times(factor: float) -> str:
    return f"{factor:.2g} times" if factor < 100 else f"{factor:,.0f} times"
