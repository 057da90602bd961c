"""Predicts every candidate, picks one, and keeps the rest to compare with."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tightwire.cluster import Cluster
from tightwire.plan import Plan, PlanFile
from tightwire.planner.candidates import (
    Allowance,
    begins_as_it_goes_on,
    departures,
    keeps_optimizer,
    stock_plan,
)
from tightwire.planner.confidence import chance, tempered
from tightwire.planner.deviation import deviation
from tightwire.planner.money import require_prices, toll_s
from tightwire.planner.quality import USUAL, Situation, extra_steps, is_studied, slow_steps
from tightwire.planner.search import SAME_CLASS, Search, competes
from tightwire.profile import Profile
from tightwire.simulate import Prediction, predict

By = Literal["step", "loss", "cost"]
# Below this, a predicted gain is no reason to leave stock PyTorch.
LEAST_GAIN = 0.02
# Expected times to a loss this close are no reason to change training more.
AS_GOOD = 0.1
# Deviations this close are no reason to prefer one plan to another, nor are numbers of steps.
SAME_DEVIATION, SAME_STEPS = 1.05, 1.01
# How probable it must be that a plan truly beats plain all-reduce.
SURE = 0.75


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Plans by predicted step time, the chosen one, and why.

    Attributes:
        profile: what the predictions were made from.
        cluster: likewise.
        allow: what the user allowed.
        by: what plans are compared by: the time of a `step`, the expected time to a `loss` that exact means reach, or
            the `cost` of a step.
        rows: every predicted plan, the best first.
        chosen: the one to train with.
        stock: plain all-reduce, as DistributedDataParallel does it.
        why: the verdict, its reason, what would change it, what was not measured.
        details: further sentences, for those who ask.
        considered: how many plans were looked at.
        pruned: how many of them were not predicted, for their lower bound is above the best found.
        samples_per_epoch: for what an epoch costs and takes; 0: nobody asked.
    """

    profile: Profile
    cluster: Cluster
    allow: Allowance
    rows: tuple[Prediction, ...]
    chosen: Prediction
    stock: Prediction
    why: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    by: By = "step"
    considered: int = 0
    pruned: int = 0
    samples_per_epoch: int = 0

    @property
    def stays(self) -> bool:
        """Whether the advice is to stay with plain all-reduce."""
        return self.chosen.plan == self.stock.plan

    @property
    def runner_up(self) -> Prediction | None:
        """The fastest plan that was not chosen."""
        return next((row for row in self.rows if row.plan != self.chosen.plan), None)

    def chance(self, row: Prediction) -> float:
        """Returns the probability that another plan is truly faster than the chosen one, or before it at a loss."""
        if self.by == "loss":
            found = sooner(row, self.chosen, Situation.of(self.profile))
            return tempered(found, (row, self.chosen), self.profile, self.cluster)
        return chance(row, self.chosen, self.profile, self.cluster)

    def gain(self, row: Prediction) -> float:
        """Returns how many times as fast as plain all-reduce a plan is: per step, or to the loss."""
        times = more_steps(row.plan, Situation.of(self.profile)) if self.by == "loss" else 1.0
        return self.stock.step_s / row.step_s / times

    @property
    def confidence(self) -> float:
        """The probability that the chosen plan is truly faster than the runner-up."""
        return 1.0 if self.runner_up is None else 1 - self.chance(self.runner_up)

    @property
    def shortlist(self) -> tuple[Prediction, ...]:
        """The chosen plan, plain all-reduce, and the fastest of every other policy, architecture and codec.

        What differs in nothing but settings and the order of transfers is as many rows for one idea.
        """
        chosen = [self.chosen] if self.stays else [self.chosen, self.stock]
        kinds = {kind_of(row.plan) for row in chosen}
        for row in self.rows:
            if (kind := kind_of(row.plan)) not in kinds:
                kinds.add(kind)
                chosen.append(row)
        return tuple(chosen)

    def plan_file(self) -> PlanFile:
        """Returns the chosen plan with what it was derived from, what is expected of it, and why."""
        return PlanFile(
            plan=str(self.chosen.plan),
            measured={
                "profile": dataclasses.asdict(self.profile),
                "cluster": dataclasses.asdict(self.cluster),
            },
            predicted=self.chosen.values(),
            why=(*self.why, *self.details),
        )


def usual(allow: Allowance) -> By:
    """Returns what plans are compared by if nothing else is asked: steps with exact means are all worth the same."""
    return "step" if allow == "lossless" else "loss"


def rank(
    profile: Profile,
    cluster: Cluster,
    allow: Allowance,
    by: By = "step",
    known: Sequence[Prediction] = (),
) -> Ranking:
    """Returns the ranking without its reasons.

    Args:
        profile: one worker's step without exchange.
        cluster: the wire.
        allow: which plans.
        by: what they are compared by.
        known: predictions of this profile on this cluster that were made before.

    Raises:
        PlanError: an unknown allowance, a model that does not fit the memory of the devices, or no price to go by.
    """
    search = _search(profile, cluster, allow, by)
    search.known = {str(row.plan): row for row in known}
    rows = search.run()
    stock = next(row for row in rows if departures(row.plan) == 0)
    return Ranking(
        profile=profile,
        cluster=cluster,
        allow=allow,
        rows=tuple(rows),
        chosen=choose_by(by, rows, stock, profile, cluster),
        by=by,
        stock=stock,
        considered=search.considered,
        pruned=search.pruned,
    )


def _search(profile: Profile, cluster: Cluster, allow: Allowance, by: By) -> Search:
    search = Search(profile, cluster, allow)
    if by == "loss":
        search.times = functools.partial(more_steps, situation=Situation.of(profile))
    elif by == "cost":
        require_prices(cluster)
        search.toll_s = functools.partial(toll_s, cluster=cluster)
    return search


def rank_few(
    plans: Iterable[Plan], profile: Profile, cluster: Cluster, allow: Allowance, by: By = "step"
) -> Ranking:
    """Ranks some plans and plain all-reduce, without a search: in a hundredth of the time, where time is short."""
    stock = predict(stock_plan(), profile, cluster)
    alone = Ranking(
        profile=profile, cluster=cluster, allow=allow, rows=(stock,), chosen=stock, stock=stock, by=by
    )
    found = rank_again(alone, profile, plans)
    return dataclasses.replace(found, considered=len(found.rows))


def rank_again(
    ranking: Ranking,
    profile: Profile,
    more: Iterable[Plan] = (),
    most: int = 100,
    anew: Callable[[Plan], bool] = lambda plan: True,
) -> Ranking:
    """Predicts the best plans of a ranking anew, from a profile that knows more; without a search, and reasons.

    Args:
        ranking: whose plans.
        profile: of the same model.
        more: plans to be predicted beside them.
        most: of the ranking's plans are looked at.
        anew: whether the profile tells something new of a plan; else its prediction stays.
    """
    cluster, known = ranking.cluster, {row.plan: row for row in ranking.rows if not anew(row.plan)}
    stock = known.get(ranking.stock.plan) or predict(ranking.stock.plan, profile, cluster)
    plans = dict.fromkeys([*(row.plan for row in ranking.rows[:most]), *more])
    found = [
        known.get(plan) or predict(plan, profile, cluster)
        for plan in plans
        if plan != stock.plan and competes(plan, profile, cluster)
    ]
    rows = sorted([stock, *found], key=_search(profile, cluster, ranking.allow, ranking.by).worth)
    return dataclasses.replace(
        ranking,
        profile=profile,
        rows=tuple(rows),
        stock=stock,
        chosen=choose_by(ranking.by, rows, stock, profile, cluster),
        why=(),
        details=(),
    )


def choose_by(
    by: By, rows: Sequence[Prediction], stock: Prediction, profile: Profile, cluster: Cluster
) -> Prediction:
    """Returns the plan to train with, by what plans are compared by; `stock` is among the rows, the best come first."""
    if by == "loss":
        return choose_by_loss(rows, stock, Situation.of(profile))
    if by == "step" or not cluster.charges_traffic:
        return choose(rows, stock, least_gain(profile, stock), profile, cluster)
    # A toll is as if the step took longer, for as long as workers could be had for it.
    tolled = {
        row.plan: dataclasses.replace(row, step_s=row.step_s + toll_s(row, cluster)) for row in (*rows, stock)
    }
    plain = tolled[stock.plan]
    found = choose(
        sorted(tolled.values(), key=lambda row: row.step_s),
        plain,
        least_gain(profile, plain),
        profile,
        cluster,
    )
    return next(row for row in (*rows, stock) if row.plan == found.plan)


def least_gain(profile: Profile, stock: Prediction) -> float:
    """Returns the gain, as a share of plain all-reduce's step, below which steps cannot be told apart."""
    return max(LEAST_GAIN, profile.noise * profile.compute_s / stock.step_s)


def choose(
    rows: Sequence[Prediction], stock: Prediction, least_gain: float, profile: Profile, cluster: Cluster
) -> Prediction:
    """Returns, of the plans about as fast as the fastest, the one that changes training least.

    Plain all-reduce where that gains too little, or too little to be sure of: formulas that favour one program over
    another by less than they may be wrong are no reason to leave it. Plans that need another optimizer are left to
    those who ask for them.

    Args:
        rows: predictions, fastest first.
        stock: that of plain all-reduce.
        least_gain: as a share of its step, below which steps cannot be told apart.
        profile: what the predictions were made from.
        cluster: likewise.
    """
    able = [row for row in rows if keeps_optimizer(row.plan)]
    sure = [
        row
        for row in able
        if row.step_s < stock.step_s * (1 - least_gain) and chance(row, stock, profile, cluster) >= SURE
    ]
    if not sure:
        return stock
    plain = [row for row in sure if row.plan.architecture == stock.plan.architecture]
    if (
        plain
    ):  # another program, or servers, must be likely to beat what plain all-reduce does in another order
        sure = [
            row
            for row in sure
            if row.plan.architecture == stock.plan.architecture
            or chance(row, plain[0], profile, cluster) >= SURE
        ]
    equals = [row for row in sure if row.step_s <= sure[0].step_s * (1 + SAME_CLASS)]
    least = min(deviation(row.plan) for row in equals)
    mildest = [row for row in equals if deviation(row.plan) <= least * SAME_DEVIATION]
    as_good_s = mildest[0].step_s * (1 + LEAST_GAIN)
    best = min(
        (row for row in mildest if row.step_s <= as_good_s),
        key=lambda row: (departures(row.plan), row.step_s),
    )
    return best if best.step_s < stock.step_s * (1 - least_gain) else stock


def choose_by_loss(rows: Sequence[Prediction], stock: Prediction, situation: Situation = USUAL) -> Prediction:
    """Returns the plan with the least expected time to the loss that exact means reach, if that is sure enough.

    Of those that are about as good, the one that changes training least: how many more steps plans need is known less
    exactly than that, and what was measured of one task suits another the less, the more a plan changes. Plans whose
    effect on the loss is a guess are left to those who ask for them. Plain all-reduce where no plan is likely to be
    faster, given how unsure it is.
    """
    able = [
        row
        for row in rows
        if keeps_optimizer(row.plan)
        and begins_as_it_goes_on(row.plan)
        and is_studied(row.plan)
        and sooner(row, stock, situation) >= SURE
        and more_steps(row.plan, situation) * row.step_s < stock.step_s * (1 - LEAST_GAIN)
    ]
    return mildest([*able, stock], functools.partial(careful_s, situation=situation)) if able else stock


def mildest(rows: Sequence[Prediction], careful: Callable[[Prediction], float]) -> Prediction:
    """Returns, of the plans about as good as the best, the one that changes training least, and of such the best.

    What a plan changes is how many more steps it is expected to need, at the slow end.

    Args:
        rows: at least one.
        careful: the expected time of what one step with exact means does; see `careful_s`.
    """
    as_good_s = min(map(careful, rows)) * (1 + AS_GOOD)
    equals = [row for row in rows if careful(row) <= as_good_s]
    more = {row.plan: careful(row) / row.step_s for row in equals}  # as `slow_steps`
    least = min(more.values())
    return min((row for row in equals if more[row.plan] <= least * SAME_STEPS), key=careful)


def careful_s(row: Prediction, situation: Situation = USUAL) -> float:
    """Returns the time of what one step with exact means does, at the slow end: the less is known, the slower.

    Args:
        row: of a plan.
        situation: in which it is to train.
    """
    return row.step_s * slow_steps(row.plan, situation)


def sooner(row: Prediction, other: Prediction, situation: Situation = USUAL) -> float:
    """Returns the probability that a plan reaches a loss sooner than another one."""
    extra, others = extra_steps(row.plan, situation), extra_steps(other.plan, situation)
    gain = math.log(others.factor * other.step_s / (extra.factor * row.step_s))
    spread = math.hypot(
        extra.spread,
        others.spread,
        row.wire_deviation_s / row.step_s,
        other.wire_deviation_s / other.step_s,
    )
    return statistics.NormalDist().cdf(gain / max(spread, 0.01))


def more_steps(plan: Plan, situation: Situation = USUAL) -> float:
    """Returns how many times as many steps a plan needs as exact means do."""
    return extra_steps(plan, situation).factor


def kind_of(plan: Plan) -> tuple[str, ...]:
    """Returns what a plan has in common with those that differ in settings and the order of transfers alone."""
    # Of policies with fewer exchanges, what is sent matters less than that it seldom is.
    sender = plan.sender.name if plan.sync.name == "bsp" else ""
    return plan.sync.name, plan.architecture.name, sender
