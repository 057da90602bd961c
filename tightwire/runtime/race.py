"""A race as a value, and its rules: who runs how long, who is out, who wins. No clock and no message is in here.

Contenders run one after another from the same state, for about the same time each. The better half runs again, from the
state that the best of them reached, so that only the time of the others is lost (successive halving, Jamieson and
Talwalkar 2016, arXiv:1502.07943, with the leader's progress kept).

A contender is judged by loss per second: the slope of its losses over the time of its steps, through the loss that all
began with. A short trial tells little, so what was measured is weighed, by its own standard error, against what the
planner expected. Who is clearly behind by then is out at once; of those that cannot be told apart, the mildest leads.
Where a heat tells less than was expected, another one would cost more than it tells. A plan whose rounds are too long
for a trial wins where, by what the others showed of the wire and of the loss, it must be better than all of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tightwire.errors import PlanError
from tightwire.units import parse_seconds

# How far a contender's loss per second may be from what the planner expects, as a share, at least: the planner's table
# is of another task, and what it says of its own spread is of that one.
PRIOR_SPREAD = 0.3
MOST_HEATS = 3
# How probable it must be that the leader is better, for another contender to be out before its time.
CLEAR = 0.9
# An error that was estimated from two or three losses.
MOST_UNSURE = 3.0
TINY = 1e-12
# What a trial of one step shows is off by this share of it, as far as it is to tell of the training that follows, and
# the less the more steps: with the first ones the loss falls fast, or not at all, under any plan.
PASSING = 1.6
# A trial of fewer steps tells less than was known before it.
LEAST_STEPS = math.ceil((PASSING / PRIOR_SPREAD) ** 2)
# In standard errors.
BEYOND_NOISE = 2.0
# Contenders are told apart if the leader is better with this probability, or by this share of its loss per second.
SURE, TIE = 0.75, 0.15


@dataclass(frozen=True, kw_only=True)
class Race:
    """Asks for a race: the planner's best few plans are tried on the job itself.

        tw.attach(model, optimizer, tw.Race(budget="40min"), allow="stale")

    Tell the loss of every step by `run.report_loss(loss)` before `optimizer.step()`, or give `judge`.

    Attributes:
        budget: of training, as a time (`40s`, `2h`) or in steps (`5000 steps`).
        share: of the budget that trials may cost: time that is spent on plans which do not win.
        contenders: how many plans are tried at most.
        judge: returns the loss on held-out data of the model as it is, on every rank; None: losses of training count.
    """

    budget: str = "10min"
    share: float = 0.02
    contenders: int = 6
    judge: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PlanError(
                f"a race was to cost {self.share:g} of its budget; give a share above 0, up to 1."
            )
        if self.contenders < 1:
            raise PlanError(f"a race of {self.contenders} plans has no winner; let at least 1 contend.")
        self.budget_s(1.0)

    @classmethod
    def parse(cls, text: str) -> Race | None:
        """Reads `race` or `race:BUDGET`; None where a text asks for no race.

        >>> Race.parse("race:40s").budget
        '40s'

        Raises:
            PlanError: a budget that is none.
        """
        name, _, budget = text.partition(":")
        if name != "race":
            return None
        return cls(budget=budget.strip()) if budget else cls()

    def budget_s(self, step_s: float) -> float:
        """Returns the budget in seconds.

        Args:
            step_s: of a step, where the budget is in steps.

        Raises:
            PlanError: it is neither a time nor a number of steps, or nothing.
        """
        number, _, unit = self.budget.strip().partition(" ")
        if unit in ("step", "steps") and number.isdigit() and int(number) > 0:
            return int(number) * step_s
        try:
            seconds = parse_seconds(self.budget)
        except ValueError:
            seconds = 0.0
        if seconds <= 0:
            raise PlanError(
                f"a race with a budget of {self.budget!r}: write how long training goes on, as 40s, 2h or 5000 steps."
            )
        return seconds


@dataclass(frozen=True)
class Belief:
    """What loss per second to expect of a contender: mean and standard deviation."""

    mean: float
    spread: float

    def over(self, other: Belief) -> float:
        """Returns the probability that this one is better.

        >>> Belief(2.0, 0.1).over(Belief(1.0, 0.1)) > 0.99, Belief(1.0, 0.1).over(Belief(1.0, 0.1))
        (True, 0.5)
        """
        if not (math.isfinite(self.mean) and math.isfinite(other.mean)):
            return float(math.isfinite(self.mean))
        spread = math.hypot(self.spread, other.spread)
        if spread == 0.0:
            return 0.5 if self.mean == other.mean else float(self.mean > other.mean)
        return statistics.NormalDist().cdf((self.mean - other.mean) / spread)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A plan in a race: what was expected of it, and what it did. On the record of the run.

    Attributes:
        plan: its text.
        predicted_step_s: what a step was expected to take.
        expected: how many times as many steps as exact means it was expected to need for a loss; the order of mildness
            among those that cannot be told apart.
        spread: standard deviation of what is expected, as a share.
        steps_per_round: steps until workers agree: a trial ends with a round.
        step_s: what a step took in its last trial; None before any.
        loss: the mean of the last losses of its last trial, or the judge's at its end.
        loss_per_s: by which the loss fell per second in its last trial.
        error: standard error of that.
        judged_steps: of its last trial.
        steps: made in all its trials.
        seconds: taken by all its trials, what was between their steps included.
        heats: it ran in.
        note: why it is out.
    """

    plan: str
    predicted_step_s: float
    expected: float = 1.0
    spread: float = PRIOR_SPREAD
    steps_per_round: int = 1
    step_s: float | None = None
    loss: float | None = None
    loss_per_s: float | None = None
    error: float = math.inf
    judged_steps: int = 0
    steps: int = 0
    seconds: float = 0.0
    heats: int = 0
    note: str = ""

    @property
    def known_step_s(self) -> float:
        """What a step takes: measured, or else predicted."""
        return self.step_s or self.predicted_step_s

    @property
    def prior(self) -> float:
        """What is expected of it: steps that are worth one with exact means, per second."""
        return 1.0 / (self.expected * self.known_step_s)

    @property
    def unsure(self) -> float:
        """How far that may be off, as a share: the standard deviation."""
        return max(PRIOR_SPREAD, self.spread)

    def doubt(self, loss_per_s: float) -> float:
        """Returns the standard error of what it showed, as far as that is to tell of the training that follows.

        Args:
            loss_per_s: that is usual.
        """
        return math.hypot(self.error, PASSING * abs(loss_per_s) / math.sqrt(max(1, self.judged_steps)))

    def moves(self, sign: int) -> bool:
        """Whether its loss moved beyond noise: rose (1), or fell (-1)."""
        return self.loss_per_s is not None and -sign * self.loss_per_s > BEYOND_NOISE * self.error

    def expectation(self, scale: float) -> Belief:
        """Returns what loss per second is expected where a step with exact means is worth so much loss."""
        return Belief(scale * self.prior, self.unsure * scale * self.prior)

    @property
    def least_steps(self) -> int:
        """The shortest trial that tells something: whole rounds."""
        return math.ceil(LEAST_STEPS / self.steps_per_round) * self.steps_per_round

    @property
    def least_s(self) -> float:
        """What that takes."""
        return self.least_steps * self.known_step_s

    def steps_in(self, seconds: float) -> int:
        """Returns the whole rounds that fit into a trial of so many seconds, at least the shortest trial."""
        rounds = int(seconds / self.known_step_s / self.steps_per_round)
        return max(self.least_steps, rounds * self.steps_per_round)


@dataclass(frozen=True, kw_only=True)
class Heats:
    """How long a race goes on: the same for every rank, told before it begins.

    Attributes:
        entered: plans that run in the first heat: those whose shortest trial is short enough.
        trial_s: seconds of each contender's trial, by heat.
        fields: how many contenders run, by heat.
    """

    entered: tuple[str, ...]
    trial_s: tuple[float, ...]
    fields: tuple[int, ...]

    @property
    def cost_s(self) -> float:
        """What is lost at most: the time of those who do not win."""
        return sum(s * (n - 1) for s, n in zip(self.trial_s, self.fields, strict=True))

    @property
    def total_s(self) -> float:
        """What all trials take."""
        return sum(s * n for s, n in zip(self.trial_s, self.fields, strict=True))


def plan_heats(contenders: Sequence[Contender], cost_s: float, most: int = 6) -> Heats:
    """Returns as large a race as a cost allows; a field of one where it allows none.

    Args:
        contenders: the best first.
        cost_s: that may be lost, in seconds.
        most: contenders.

    >>> field = [Contender(plan=f"local:{n}", predicted_step_s=0.1) for n in (2, 4, 8, 16)]
    >>> plan_heats(field, 20.0).fields, plan_heats(field, 0.1).fields
    ((4, 2), (1,))
    """
    sizes = range(min(most, len(contenders)), 1, -1)
    shapes = [fields for size in sizes for fields in _shapes(size)]
    # Rather a small race with the best one that can be tried at all than a large one without.
    triable = [c for c in contenders if c.least_s <= cost_s]
    for fields in shapes:
        shares = [cost_s / len(fields) / (n - 1) for n in fields]
        able = [c for c in triable if c.least_s <= shares[0]][: fields[0]]
        if len(able) == fields[0] and able[0] is triable[0]:
            return Heats(entered=tuple(c.plan for c in able), trial_s=tuple(shares), fields=fields)
    return Heats(entered=tuple(c.plan for c in contenders[:1]), trial_s=(0.0,), fields=(1,))


def _shapes(size: int) -> list[tuple[int, ...]]:
    """Returns the sizes of the heats' fields; two run twice, if there is time, so that a clear loser runs half as long.

    >>> _shapes(6), _shapes(2)
    ([(6, 3, 2)], [(2, 2), (2,)])
    """
    if size == 2:
        return [(2, 2), (2,)]
    fields = [size]
    while fields[-1] > 2 and len(fields) < MOST_HEATS:
        fields.append(math.ceil(fields[-1] / 2))
    return [tuple(fields)]


def judged(contender: Contender, losses: Sequence[float], step_s: float, start: float) -> Contender:
    """Returns a contender with what a trial showed.

    Args:
        contender: that ran.
        losses: of its steps, mean over ranks, each before the step's update.
        step_s: of a typical step.
        start: the loss that all of the heat began with.

    >>> found = judged(Contender(plan="bsp", predicted_step_s=1.0), [3.0, 2.9, 2.8, 2.7], 0.5, 3.0)
    >>> round(found.loss_per_s, 6)
    0.2
    """
    if not all(map(math.isfinite, losses)):
        return replace(contender, step_s=step_s, loss=None, loss_per_s=-math.inf, error=0.0, note="diverged")
    contender = replace(contender, judged_steps=len(losses))
    times = [number * step_s for number in range(len(losses))]
    weight = sum(t * t for t in times)
    slope = sum(t * (start - loss) for t, loss in zip(times, losses, strict=True)) / weight if weight else 0.0
    rest = sum((start - slope * t - loss) ** 2 for t, loss in zip(times, losses, strict=True))
    freedom = max(1, len(losses) - 1)
    error = _unsure(freedom) * math.sqrt(rest / freedom / weight) if weight else math.inf
    return replace(
        contender, step_s=step_s, loss=statistics.fmean(last_of(losses)), loss_per_s=slope, error=error
    )


def last_of(losses: Sequence[float]) -> Sequence[float]:
    """Returns the losses that a trial ended with: its last quarter."""
    return losses[-max(1, len(losses) // 4) :]


def _unsure(freedom: int) -> float:
    """Returns by how much an error that was estimated from few losses is larger: Student's t over the normal law.

    >>> round(_unsure(3), 2), round(_unsure(20), 2)
    (1.73, 1.05)
    """
    return math.sqrt(freedom / (freedom - 2)) if freedom > 2 else MOST_UNSURE


def order(contenders: Sequence[Contender]) -> list[Contender]:
    """Returns the contenders of a heat, the best first: by what was measured, weighed against what was expected.

    The planner says who is how many times as good, the heat as a whole how good that is. Of those that are about as
    good as the best one, and not surely worse, the mildest leads.
    """
    return _ordered(contenders, _beliefs(contenders, Heat.of(contenders)))


def clearly_behind(contenders: Sequence[Contender]) -> set[str]:
    """Returns the plans of those that the leader is better than, as good as surely, or whose loss alone rises."""
    found = _beliefs(contenders, Heat.of(contenders))
    leader, *others = _ordered(contenders, found)
    rising = _rising(contenders)
    return {c.plan for c in others if found[leader.plan].over(found[c.plan]) >= CLEAR or c.plan in rising}


def tells_little(contenders: Sequence[Contender]) -> bool:
    """Whether a heat showed less than was expected before: then another one would not tell its contenders apart."""
    heat = Heat.of(contenders)
    expected = {c.plan: c.expectation(heat.scale) for c in contenders}
    return all(c.doubt(expected[c.plan].mean) > expected[c.plan].spread for c in contenders)


def better_untried(ran: Sequence[Contender], others: Sequence[Contender]) -> Contender | None:
    """Returns, of contenders that did not run, the one that is expected to be better than all that did; None if none.

    Their steps take as many times as long as predicted as those of the others did, and are worth as much.

    Args:
        ran: in the last heat; at least one showed something.
        others: whose trial would have been too long.
    """
    heat = Heat.of(ran)
    paced = [replace(c, predicted_step_s=c.predicted_step_s * heat.pace) for c in others]
    found = _beliefs(ran, heat) | {c.plan: c.expectation(heat.scale) for c in paced}
    leader = _ordered([*ran, *paced], found)[0]
    best = max((found[c.plan].mean for c in ran), default=-math.inf)
    is_better = leader in paced and math.isfinite(best) and found[leader.plan].mean > best
    return next(c for c in others if c.plan == leader.plan) if is_better else None


@dataclass(frozen=True)
class Heat:
    """What a heat showed as a whole.

    Attributes:
        scale: how much loss one step with exact means is worth.
        pace: how many times as long as predicted steps took.
    """

    scale: float
    pace: float

    @classmethod
    def of(cls, contenders: Sequence[Contender]) -> Heat:
        """Returns what a heat showed: least squares over its contenders, at least what noise may hide."""
        ran = [
            (c, c.loss_per_s)
            for c in contenders
            if c.loss_per_s is not None and math.isfinite(c.loss_per_s) and math.isfinite(c.error)
        ]
        usual = statistics.fmean(abs(y) for _, y in ran) if ran else 0.0
        weights = [(c.prior, y, max(c.doubt(usual), TINY) ** -2) for c, y in ran]
        square = sum(w * p * p for p, _, w in weights)
        scale = sum(w * p * y for p, y, w in weights) / square if square else 0.0
        hidden = square**-0.5 if square and any(c.error for c, _ in ran) else 0.0
        paces = [c.step_s / c.predicted_step_s for c in contenders if c.step_s and c.predicted_step_s]
        return cls(scale=max(0.0, scale, hidden), pace=statistics.median(paces) if paces else 1.0)


def _ordered(contenders: Sequence[Contender], found: Mapping[str, Belief]) -> list[Contender]:
    rising = _rising(contenders)
    ranked = sorted(contenders, key=lambda c: (c.plan in rising, -found[c.plan].mean))
    if not ranked or not math.isfinite(found[ranked[0].plan].mean):
        return ranked
    best = found[ranked[0].plan]
    equals = [
        c
        for c in ranked
        if c.plan not in rising
        and found[c.plan].mean >= best.mean - TIE * abs(best.mean)
        and best.over(found[c.plan]) < SURE
    ]
    leader = min(equals, key=lambda c: c.expected, default=ranked[0])
    return [leader, *(c for c in ranked if c is not leader)]


def _rising(contenders: Sequence[Contender]) -> set[str]:
    """Returns the plans whose loss rises beyond noise where another falls: none leads, whatever was expected."""
    falls = any(c.moves(-1) for c in contenders)
    return {c.plan for c in contenders if falls and c.moves(1)}


def _beliefs(contenders: Sequence[Contender], heat: Heat) -> dict[str, Belief]:
    """Returns what to expect of each contender of a heat, by plan."""
    return {c.plan: _believed(c, heat.scale) for c in contenders}


def _believed(contender: Contender, scale: float) -> Belief:
    """Returns the mean of measured and expected, weighed by their precisions."""
    measured, expected = contender.loss_per_s, contender.expectation(scale)
    if measured is None or not math.isfinite(measured):
        return Belief(-math.inf, 0.0)
    if expected.spread <= 0:
        return Belief(measured, contender.error if math.isfinite(contender.error) else 0.0)
    trust, doubt = contender.doubt(expected.mean) ** -2, expected.spread**-2
    return Belief((trust * measured + doubt * expected.mean) / (trust + doubt), (trust + doubt) ** -0.5)
