"""Where the choice would change: at which bandwidth, latency, batch, or number of workers.

What is told was asked: at the point that a sentence names, and at the last before it, all plans were ranked as the
planner does here. Where to ask is guessed from a pool of few plans, predicted at points a factor of two apart: the
fastest of the ranking here and on a much slower wire, each way of keeping in step, architecture and compression once;
who was chosen where the pool guessed wrong joins it. What turns and turns back between two points is not seen, and a
turn that was not closed in upon after a few looks is told with "if not before".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tightwire.cluster import Cluster
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.planner.bounds import lower_bound_s
from tightwire.planner.candidates import departures, stock_plan
from tightwire.planner.naming import name_of
from tightwire.planner.quality import Situation
from tightwire.planner.ranking import (
    LEAST_GAIN,
    By,
    Ranking,
    choose_by,
    kind_of,
    least_gain,
    more_steps,
    rank,
)
from tightwire.planner.scaling import smaller
from tightwire.profile import Profile
from tightwire.simulate import Prediction, predict
from tightwire.units import print_ms, print_rate

# How far from the present value a turn is still looked for.
FARTHEST = 1000.0
MAX_LATENCY_S = 1.0
MOST_WORKERS = 1024
# Bandwidth is what a choice is most asked about; the others are told to two digits.
EXACT, ROUGH, TWICE = 1.02, 1.05, 2.0
# How often all plans are ranked in one search, over bandwidth and over the others: in a tenth of a second where plans
# are lossless, else in up to a half.
LOOKS, FEWER_LOOKS = 3, 2
Point = tuple[Profile, Cluster]
# How many plans are predicted at every point, and how many of a ranking's are tried on a slow wire to find them.
POOL, TRIED = 5, 24
SLOW_WIRE = 1 / 30


def break_even(ranking: Ranking) -> tuple[str, ...]:
    """Returns at which bandwidth another plan would be chosen, and then of latency, batch and workers."""
    if ranking.cluster.workers == 1:
        return ()
    oracle = Oracle(ranking, list(pool_of(ranking)))
    return tuple(sentence for look in (_bandwidth, _others) for sentence in look(ranking, oracle))


@dataclass
class Oracle:
    """Tells what would be chosen elsewhere: surely, by ranking all plans there, or by a guess among a few.

    Attributes:
        ranking: here.
        pool: among which is guessed; who was chosen where the guess was wrong joins it.
    """

    ranking: Ranking
    pool: list[Plan]
    _asked: dict[Point, Plan] = field(default_factory=dict)
    _guessed: dict[Point, Plan] = field(default_factory=dict)

    def ask(self, profile: Profile, cluster: Cluster) -> Plan:
        """Returns the plan that the planner chooses there."""
        ranking = self.ranking
        if (profile, cluster) == (ranking.profile, ranking.cluster):
            return ranking.chosen.plan
        if (point := (profile, cluster)) not in self._asked:
            guess = self.guess(profile, cluster)
            found = rank(profile, cluster, ranking.allow, ranking.by)
            self._asked[point] = found.chosen.plan
            if is_another(guess, found.chosen.plan):
                # What is good enough is told by the best, which may be another.
                best = (found.chosen.plan, found.rows[0].plan)
                self.pool += [plan for plan in best if plan not in self.pool]
                self._guessed.clear()
        return self._asked[point]

    def guess(self, profile: Profile, cluster: Cluster) -> Plan:
        """Returns what the pool's plans say, in a fraction of the time."""
        if (point := (profile, cluster)) not in self._guessed:
            self._guessed[point] = chosen_among(self.pool, profile, cluster, self.ranking.by)
        return self._guessed[point]


def is_another(plan: Plan, other: Plan) -> bool:
    """Whether two plans differ in more than settings and the order of transfers; in anything, from plain all-reduce."""
    if 0 in (departures(plan), departures(other)):
        return departures(plan) != departures(other)
    return kind_of(plan) != kind_of(other)


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
        last: the farthest factor at which nothing was seen to change, before that.
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
    return BreakEven(far, there, near)


def find_turn(
    ask: Callable[[float], Plan],
    guess: Callable[[float], Plan],
    farthest: float,
    precision: float = EXACT,
    looks: int = LOOKS,
) -> BreakEven:
    """Returns the nearest factor at which another plan is chosen for sure, as far as guesses lead there.

    Args:
        ask: the plan that is chosen at a factor of the present value, which takes long to tell.
        guess: a guess at it, which may get better by what was asked.
        farthest: the last factor to look at, above or below 1.
        precision: ratio between the factor returned and one at which nothing has changed yet, if that was found.
        looks: how often may be asked, beside at 1.
    """
    here = there = ask(1.0)
    near, far = 1.0, None
    is_lost = False
    for _ in range(looks):
        point = _next_point(here, near, far, guess, farthest, precision, is_lost=is_lost)
        guessed, found = guess(point), ask(point)
        is_lost = is_another(here, guessed) != is_another(here, found)
        if is_another(here, found):
            far, there = point, found
        else:
            near = point
        if near == farthest or (far is not None and _is_near(near, far, precision)):
            break
    return BreakEven(far, there, near)


def _next_point(
    here: Plan,
    near: float,
    far: float | None,
    guess: Callable[[float], Plan],
    farthest: float,
    precision: float,
    *,
    is_lost: bool,
) -> float:
    """Returns where to ask next: at either side of the guessed turn, else in the midst of what is open."""
    if not is_lost:

        def stands(factor: float) -> Plan:
            found = here if factor == near else guess(factor)
            return found if is_another(here, found) else here

        turn = find_change(stands, farthest if far is None else far, precision, near)
        if far is None:
            return farthest if turn.factor is None else turn.factor
        if turn.factor is not None:
            inner = [factor for factor in (turn.last, turn.factor) if factor not in (near, far)]
            if inner:
                return inner[0]
    return farthest if far is None else (near * far) ** 0.5


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


def _bandwidth(ranking: Ranking, oracle: Oracle) -> Iterator[str]:
    here = ranking.cluster.bandwidth_bytes_per_s
    turns = [
        _turn(oracle, lambda f: (ranking.profile, ranking.cluster.scaled(f)), farthest, EXACT, LOOKS)
        for farthest in (FARTHEST, 1 / FARTHEST)
    ]
    lead = "What would change it: "
    for turn in turns:
        if turn.factor is not None:
            before = _before(turn, EXACT)
            way = "at" if before else "from" if turn.factor > 1 else "below"
            yield (
                f"{lead}{way} {print_rate(here * turn.factor)} a line ({_times(turn.factor)} the present rate){before} "
                f"{name_of(turn.plan)} would be chosen."
            )
            lead = "And "
    if all(turn.factor is None for turn in turns):
        low, high = (print_rate(here * turn.last) for turn in reversed(turns))
        yield (
            f"At every bandwidth checked the choice stands, with latencies as they are: at {low} and at {high} a line "
            "all plans were ranked, and a few at rates between them, each twice the one before."
        )


def _others(ranking: Ranking, oracle: Oracle) -> Iterator[str]:
    """Yields a sentence with the turn of each kind, and with where there is none."""
    looked = [found for look in (_latency, _compute, _workers) for found in look(ranking, oracle)]
    turns = "; ".join(text for is_turn, text in looked if is_turn)
    stands = ", ".join(text for is_turn, text in looked if not is_turn)
    if turns:
        yield f"Also {turns}{f'; it stands {stands}, as far as was checked' if stands else ''}."
    elif stands:
        yield f"It stands {stands}, as far as was checked."


def _latency(ranking: Ranking, oracle: Oracle) -> Iterator[tuple[bool, str]]:
    """Yields at which latency of lines that are all alike; measured programs keep theirs."""
    cluster, here = ranking.cluster, ranking.cluster.latency_s
    if cluster.fits or cluster.links is not None or not 0 < here < MAX_LATENCY_S:
        return

    def told(factor: float) -> str:
        return print_ms(here * factor)

    turn = _turn(
        oracle,
        lambda f: (ranking.profile, dataclasses.replace(cluster, latency_s=here * f)),
        MAX_LATENCY_S / here,
        ROUGH,
    )
    if turn.factor is None:
        yield False, f"up to a latency of {told(turn.last)}"
    else:
        before = _before(turn, ROUGH)
        way = "at" if before else "from"
        yield True, f"{way} a latency of {told(turn.factor)}{before} {name_of(turn.plan)}"


def _compute(ranking: Ranking, oracle: Oracle) -> Iterator[tuple[bool, str]]:
    """Yields how many times as large a batch, or compute per step; a smaller one where only that may turn it."""

    def at(factor: float) -> Point:
        return slower(ranking.profile, factor), ranking.cluster

    def may_turn(farthest: float) -> bool:
        return find_change(lambda f: oracle.guess(*at(f)), farthest, TWICE).factor is not None

    farthest = 1 / FARTHEST if not may_turn(FARTHEST) and may_turn(1 / FARTHEST) else FARTHEST
    turn = _turn(oracle, at, farthest, ROUGH)
    if turn.factor is None:
        yield False, f"with {_times(turn.last)} the compute per step"
    else:
        before = _before(turn, ROUGH).rstrip(",")
        yield (
            True,
            f"with {_times(turn.factor)} the compute per step{before}, as by another batch, {name_of(turn.plan)}",
        )


def _workers(ranking: Ranking, oracle: Oracle) -> Iterator[tuple[bool, str]]:
    """Yields how many more workers, each number twice the one before, where lines are all alike and not measured."""
    cluster, here = ranking.cluster, ranking.cluster.workers
    if cluster.fits or cluster.kinds or cluster.links is not None or here >= MOST_WORKERS:
        return

    def told(factor: float) -> str:
        return f"{round(here * factor):,}"

    turn = _turn(
        oracle,
        lambda f: (ranking.profile, smaller(cluster, round(here * f))),
        MOST_WORKERS / here,
        TWICE,
    )
    if turn.factor is not None:
        yield (
            True,
            f"with {told(turn.factor)} workers{_before(turn, TWICE)} {name_of(turn.plan)}",
        )
    else:
        yield False, f"with {told(turn.last)} workers"


def _turn(
    oracle: Oracle, at: Callable[[float], Point], farthest: float, precision: float, looks: int = FEWER_LOOKS
) -> BreakEven:
    """Returns where another plan is chosen, of points that a factor tells."""
    return find_turn(lambda f: oracle.ask(*at(f)), lambda f: oracle.guess(*at(f)), farthest, precision, looks)


def _is_near(factor: float, other: float, precision: float) -> bool:
    return max(factor / other, other / factor) <= precision * 1.001


def _before(turn: BreakEven, precision: float) -> str:
    """Returns what is to be said where the choice was not seen to stand just before a turn."""
    assert turn.factor is not None
    return "" if _is_near(turn.factor, turn.last, precision) else ", if not before,"


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
