"""What the literature says, as sentences that are checked on results: nothing here knows the outcome."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from tightwire.study.results import Results, Summary, Trial
from tightwire.study.task import Task

NOISE = 2.0  # standard errors of the mean difference
FLOOR = 0.002  # of the metric: two accuracies of three seeds may differ by less than their spread can show


@dataclass(frozen=True)
class ClaimVerdict:
    """Whether a claim holds on one task in one scene.

    Attributes:
        holds: None where it was not measured.
        numbers: that show it.
    """

    holds: bool | None
    numbers: str

    def __str__(self) -> str:
        word = {True: "holds", False: "does not hold", None: "not measured"}[self.holds]
        return f"{word}: {self.numbers}"


Check = Callable[["Findings"], ClaimVerdict]


@dataclass(frozen=True)
class Claim:
    """One sentence of the literature.

    Attributes:
        sentence: what is said, and by whom.
        check: says whether it holds.
        scene: where it is said to.
        because: why it is otherwise here, told where it does not hold.
    """

    sentence: str
    check: Check
    scene: str = "plain"
    because: str = ""


@dataclass(frozen=True)
class Findings:
    """What a check may look at: one task in one scene."""

    results: Results
    task: Task
    scene: str

    def of(self, plan: str) -> Summary:
        """Returns what was found of a plan."""
        return self.results.summary(self.scene, self.task.name, plan, self.task.has_diverged)

    def trials(self) -> list[Trial]:
        """Returns all that were made here and did not fail."""
        here = (self.scene, self.task.name)
        return [t for t in self.results.trials if (t.scene, t.task) == here and not t.error]

    def gap(self, plan: str, other: str) -> float | None:
        """Returns by which share of `other`'s metric `plan` is worse; negative where it is better.

        A model that diverged is infinitely worse than one that did not.
        """
        one, two = self.of(plan), self.of(other)
        if two.mean is None or not one.trials or one.errors:
            return None
        if one.mean is None:
            return math.inf
        differences = self._differences(plan, other)
        return statistics.fmean(differences) / abs(two.mean) if differences else None

    def noise(self, plan: str, other: str) -> float:
        """Returns what seeds alone may make of their gap, as a share of `other`'s metric.

        Two standard errors of the mean difference. A seed gives both plans the same weights and batches, so that
        differences are taken seed by seed: what a seed does to both alike is no noise.
        """
        differences = self._differences(plan, other)
        if len(differences) < 2:
            return FLOOR
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        return max(FLOOR, NOISE * error / abs(self.of(other).mean or 1.0))

    def explained(self, plan: str, other: str) -> str:
        """Says where `noise` is from."""
        several = len(self._differences(plan, other)) > 1
        return "seeds explain" if several else "one seed, which is taken to explain"

    def _differences(self, plan: str, other: str) -> list[float]:
        """Returns by how much `plan` is worse, for every seed that both were tried with and neither diverged on."""
        mine, others = ({t.seed: t.metric for t in self.of(p).trials} for p in (plan, other))
        pairs = [(mine[seed], others[seed]) for seed in sorted(mine.keys() & others.keys())]
        sign = -1.0 if self.task.higher_is_better else 1.0
        return [sign * (m - o) for m, o in pairs if m is not None and o is not None]

    def numbers(self, plan: str, other: str) -> str:
        """Prints two plans' metrics side by side."""
        mine, others = print_metric(self.of(plan)), print_metric(self.of(other))
        return f"{_short(plan)} {mine} against {_short(other)} {others}"


def at_equal_time(findings: Findings, plan: str) -> dict[int, float | None]:
    """Returns by seed what a plan had reached when the first of all plans that were compared had made its steps.

    That of the last snapshot until then, of the mean of all workers' models; None where there was none yet.
    """
    others: dict[int, list[float]] = {}
    for trial in findings.trials():
        others.setdefault(trial.seed, []).append(trial.seconds)
    return {
        t.seed: t.metric if t.seconds <= (end_s := min(others[t.seed])) else t.at(end_s)
        for t in findings.of(plan).trials
        if not t.error
    }


def _short(plan: str) -> str:
    """Returns what is told of a plan: under bsp, all-reduce and one bucket, its compression."""
    return plan.removeprefix("bsp/allreduce/").removesuffix("/sequential")


def print_metric(summary: Summary) -> str:
    """Prints mean ± spread; one trial has none."""
    if not summary.trials:
        return "not measured"
    if summary.errors:
        return "failed"
    if summary.mean is None:
        return f"diverged in {summary.diverged} of {len(summary.trials)}"
    return f"{summary.mean:.4f}" + (f" ± {summary.spread:.4f}" if len(summary.trials) > 1 else "")


def within(plan: str, of: str, share: float) -> Check:
    """Checks that a plan is at most `share` worse than another."""
    return _gap_check(plan, of, lambda gap, noise: gap <= share, f", wanted within {100 * share:g}%")


def no_worse(plan: str, than: str) -> Check:
    """Checks that a plan is no worse than another beyond what seeds explain."""
    return _gap_check(plan, than, lambda gap, noise: gap <= noise)


def worse(plan: str, than: str) -> Check:
    """Checks that a plan is worse than another beyond what seeds explain."""
    return _gap_check(plan, than, lambda gap, noise: gap > noise)


def same(plan: str, as_: str) -> Check:
    """Checks that two plans differ by no more than seeds explain."""
    return _gap_check(plan, as_, lambda gap, noise: abs(gap) <= noise)


def fewer_bytes(plan: str, than: str, times: float) -> Check:
    """Checks that a plan sends at least `times` fewer bytes per step than another."""

    def check(findings: Findings) -> ClaimVerdict:
        mine, others = (findings.of(p).bytes_per_step for p in (plan, than))
        if mine is None or others is None:
            return ClaimVerdict(None, f"{_short(plan)} and {_short(than)} are needed")
        ratio = others / mine if mine else math.inf
        numbers = f"{_short(plan)} sends {mine:,.0f} bytes per step, {_short(than)} {others:,.0f}: {ratio:.1f}× fewer"
        return ClaimVerdict(ratio >= times, f"{numbers}, wanted {times:g}×")

    return check


def faster(plan: str, than: str, times: float) -> Check:
    """Checks that a plan makes at least `times` as many steps per second as another."""

    def check(findings: Findings) -> ClaimVerdict:
        mine, others = (findings.of(p).steps_per_s for p in (plan, than))
        if mine is None or others is None:
            return ClaimVerdict(None, f"{plan} and {than} are needed")
        numbers = f"{plan} {1e3 / mine:.1f} ms per step, {than} {1e3 / others:.1f} ms: {mine / others:.2f}×"
        return ClaimVerdict(mine / others >= times, f"{numbers}, wanted {times:g}×")

    return check


def ahead_at_equal_time(plan: str, of: str) -> Check:
    """Checks that a plan has come further than another when the first of all had made its steps."""

    def check(findings: Findings) -> ClaimVerdict:
        mine, others = (at_equal_time(findings, p) for p in (plan, of))
        pairs = [(mine[seed], others[seed]) for seed in mine if seed in others]
        if not pairs or None in (one for one, _ in pairs):
            return ClaimVerdict(None, f"{plan} and {of} are needed, with snapshots")
        sign = 1 if findings.task.higher_is_better else -1
        better = sum(two is None or sign * (one - two) > 0 for one, two in pairs)  # type: ignore[operator]
        numbers = "; ".join(f"{_number(one)} against {_number(two)}" for one, two in pairs)
        return ClaimVerdict(better == len(pairs), f"{plan} {numbers} of {of}, seed by seed")

    return check


def _number(metric: float | None) -> str:
    return "nothing yet" if metric is None else f"{metric:.4f}"


def all_of(*checks: Check) -> Check:
    """Checks several things at once."""

    def check(findings: Findings) -> ClaimVerdict:
        verdicts = [one(findings) for one in checks]
        known = [v.holds for v in verdicts if v.holds is not None]
        holds = all(known) if len(known) == len(verdicts) else (False if False in known else None)
        return ClaimVerdict(holds, "; ".join(v.numbers for v in verdicts))

    return check


def _gap_check(plan: str, other: str, holds: Callable[[float, float], bool], wanted: str = "") -> Check:
    def check(findings: Findings) -> ClaimVerdict:
        gap = findings.gap(plan, other)
        numbers = findings.numbers(plan, other)
        if gap is None:
            return ClaimVerdict(None, numbers)
        noise = findings.noise(plan, other)
        explained = f"{findings.explained(plan, other)} {noise:.2%}"
        said = f"{abs(gap):.2%} {'worse' if gap > 0 else 'better'}, {explained}{wanted}"
        return ClaimVerdict(holds(gap, noise), f"{numbers} ({said})")

    return check
