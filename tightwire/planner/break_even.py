"""Where the choice would change: at which bandwidth, latency, batch, or number of workers.

At every point that is looked at, all plans of a pool are predicted, and one is chosen as the ranking chooses: so the
plan that is named at a turn is one that the planner would choose there. The pool holds the fastest plans of the ranking
here and on a much slower wire, each way of keeping in step, architecture and compression once. Points are a factor of
two apart, and what turns and turns back between two of them is not seen; a sentence says which points were checked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tightwire.cluster import Cluster
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.planner.bounds import lower_bound_s
from tightwire.planner.candidates import departures, stock_plan
from tightwire.planner.naming import name_of
from tightwire.planner.quality import Situation
from tightwire.planner.ranking import LEAST_GAIN, By, Ranking, choose_by, kind_of, least_gain, more_steps
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
Choose = Callable[[Profile, Cluster], Plan]
# How many plans are predicted at every point, and how many of a ranking's are tried on a slow wire to find them.
POOL, TRIED = 5, 24
SLOW_WIRE = 1 / 30


def break_even(ranking: Ranking) -> tuple[str, ...]:
    """Returns at which bandwidth another plan would be chosen, and then of latency, batch and workers."""
    if ranking.cluster.workers == 1:
        return ()
    pool = pool_of(ranking)

    @functools.cache  # every search begins where the ranking is
    def choose(profile: Profile, cluster: Cluster) -> Plan:
        return chosen_among(pool, profile, cluster, ranking.by)

    return tuple(sentence for look in (_bandwidth, _others) for sentence in look(ranking, choose))


def pool_of(ranking: Ranking) -> tuple[Plan, ...]:
    """Returns the plans among which a choice is made elsewhere: the chosen one, plain all-reduce, each kind's best."""
    slow = ranking.cluster.scaled(SLOW_WIRE)
    there = _predicted([row.plan for row in ranking.rows[:TRIED]], ranking.profile, slow)
    # Of equals, the one that is faster here comes first.
    there.sort(key=lambda row: float(f"{row.step_s:.9g}"))
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
    stock = predict(stock_plan(), profile, cluster, quick=True)
    able = [plan for plan in plans if departures(plan) and can_gain(plan, stock, profile, cluster, by)]
    rows = sorted([stock, *_predicted(able, profile, cluster)], key=_step_s)
    found = choose_by(by, rows, stock, profile, cluster).plan
    if departures(found) == 0:
        return found
    return next(plan for plan in plans if departures(plan) and kind_of(plan) == kind_of(found))


def can_gain(plan: Plan, stock: Prediction, profile: Profile, cluster: Cluster, by: By) -> bool:
    """Whether a plan's lower bound leaves room for what is asked of it: one without room is never chosen.

    Where traffic has a price, a slower plan may be the cheaper one.
    """
    if by == "cost" and cluster.charges_traffic:
        return True
    try:
        bound_s = lower_bound_s(plan, profile, cluster)
    except (PlanError, ProgramError):
        return False
    if by == "loss":
        return more_steps(plan, Situation.of(profile)) * bound_s < stock.step_s * (1 - LEAST_GAIN)
    return bound_s < stock.step_s * (1 - least_gain(profile, stock))


def _bandwidth(ranking: Ranking, choose: Choose) -> Iterator[str]:
    here = ranking.cluster.bandwidth_bytes_per_s
    turns = [
        find_change(
            lambda f: choose(ranking.profile, ranking.cluster.scaled(f)),
            farthest,
        )
        for farthest in (FARTHEST, 1 / FARTHEST)
    ]
    lead = "What would change it: "
    for turn in turns:
        if turn.factor is not None:
            yield (
                f"{lead}{'from' if turn.factor > 1 else 'below'} {print_rate(here * turn.factor)} a line "
                f"({_times(turn.factor)} the present rate) {name_of(turn.plan)} would be chosen."
            )
            lead = "And "
    if all(turn.factor is None for turn in turns):
        low, high = (print_rate(here * turn.last) for turn in reversed(turns))
        yield f"At every bandwidth checked, from {low} to {high} in steps of two, the choice stands."


def _others(ranking: Ranking, choose: Choose) -> Iterator[str]:
    """Yields a sentence with the nearest turn of each kind, and one more for each turn on a kind's other side."""
    turns, others, stands = [], [], []
    for look in (_latency, _compute, _workers):
        of_kind = list(look(ranking, choose))
        turned = [text for is_turn, text in of_kind if is_turn]
        stands += [text for is_turn, text in of_kind if not is_turn]
        turns += turned[:1]
        others += turned[1:]
    if turns:
        yield f"Also {'; '.join(turns)}."
    yield from (f"And {text}." for text in others)
    if stands:
        yield f"It stands {', '.join(stands)}, as far as was checked."


def _latency(ranking: Ranking, choose: Choose) -> Iterator[tuple[bool, str]]:
    """Yields at which latency of lines that are all alike; measured programs keep theirs."""
    cluster, here = ranking.cluster, ranking.cluster.latency_s
    if cluster.fits or cluster.links is not None or not 0 < here < MAX_LATENCY_S:
        return

    turn = find_change(
        lambda f: choose(ranking.profile, dataclasses.replace(cluster, latency_s=here * f)),
        MAX_LATENCY_S / here,
        ROUGH,
    )
    if turn.factor is None:
        yield False, f"up to a latency of {print_ms(MAX_LATENCY_S)}"
    else:
        yield True, f"above a latency of {print_ms(here * turn.factor)} {name_of(turn.plan)}"


def _compute(ranking: Ranking, choose: Choose) -> Iterator[tuple[bool, str]]:
    """Yields how many times as large a batch, or compute per step; the other way only where the first turns nothing."""
    for farthest in (FARTHEST, 1 / FARTHEST):
        turn = find_change(lambda f: choose(slower(ranking.profile, f), ranking.cluster), farthest, ROUGH)
        if turn.factor is not None:
            yield (
                True,
                f"with {_times(turn.factor)} the compute per step or {'more' if turn.factor > 1 else 'less'}, as by "
                f"another batch, {name_of(turn.plan)}",
            )
            return
    yield False, f"with {FARTHEST:,.0f} times the compute per step and with 1/{FARTHEST:,.0f}"


def _workers(ranking: Ranking, choose: Choose) -> Iterator[tuple[bool, str]]:
    """Yields the nearest power of two of workers, where lines are all alike and nothing was measured."""
    cluster, here = ranking.cluster, ranking.cluster.workers
    if cluster.fits or cluster.kinds or cluster.links is not None:
        return
    now = choose(ranking.profile, cluster)
    powers = [2**power for power in range(1, MOST_WORKERS.bit_length())]
    for counts, way in (
        ([n for n in powers if n > here], "or more"),
        ([n for n in reversed(powers) if n < here], "or fewer"),
    ):
        for workers in counts:
            other = choose(ranking.profile, smaller(cluster, workers))
            if other != now:
                yield True, f"with {workers:,} workers {way} {name_of(other)}"
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


def _times(factor: float) -> str:
    return f"{factor:.2g} times" if factor < 100 else f"{factor:,.0f} times"
