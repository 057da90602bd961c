"""How many more steps a plan needs than exact means do to reach the same loss: measured, with its spread.

The table `extra_steps.json` is made from the studies' kept results (`results/*.json`, the text task, whose loss does
not saturate): a trial that ends at a loss L after S steps is worth the s steps that dense gradients need for L, and
needs S/s times as many. What dense gradients need is interpolated between the losses at which dense runs of 120 to
1,200 steps ended, each with its whole schedule of the rate, linearly in the logarithm of steps. Written anew by

    python -c "from tightwire.planner import quality; quality.write('results')"

A plan's factor is the product of those of its policy, its architecture and its compression. What was not measured is
taken from the nearest relative, or else from how much the plan deviates, with a wide spread.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.planner.deviation import deviation
from tightwire.profile import Profile

TABLE = pathlib.Path(__file__).with_name("extra_steps.json")
# Standard deviation of the factor's logarithm where one seed was run, where a relative was, and where nothing was.
ONE_SEED, RELATIVE, UNKNOWN = 0.1, 0.15, 0.3
# By how much a deviation slows training down where nothing was measured: the exponent that suits the table's rows.
PRIOR_EXPONENT = 0.1
# A run that ends above where dense ones begin did not learn.
MOST_FACTOR = 20.0
# A relative with these stages trains with another optimizer, and tells little of one without.
OTHER_OPTIMIZERS = {"momentum", "clip", "ema", "lion", "signed"}
# Of the text task, four workers with four sequences each, in its first steps, in which a run measures its own; by step
# 200 it is 2.6. To a run with as much the table applies as it is. The exponent follows the noise no further than by
# these factors, for one task tells little of another, and a run may begin from a checkpoint.
STUDIED_NOISE = 0.09
LEAST_SHARE, MOST_SHARE = 0.5, 2.0
# Of the text task's trials, from which the table is. In fewer steps what a plan loses has not added up yet, though most
# of it has: ten jobs of `tightwire study race`, 20 s each at 1 Gb/s, needed beside DDP's curve, by step 30 to 200, 1.1
# to 1.5 times as many steps under `local:8/allreduce/int8` (1.28 in the mean; the table says 1.42), 1.1 to 1.6 under
# `powersgd:4+ef` (1.35; 1.35) and 1.0 under `int4+ef`. So the logarithm grows by a small power of steps.
STUDIED_STEPS, GROWS_AS = 800, 1 / 6
FAMILIES = ("sync", "architecture", "compression")
DENSE = ("bsp/allreduce/none/sequential", "bsp/allreduce/none", "ddp")
STUDIES = ("compression", "sync", "architecture")
# Shorter runs tell of the start, not of training.
LEAST_STEPS = 400


@dataclass(frozen=True, kw_only=True)
class ExtraSteps:
    """How many times as many steps a plan needs.

    Attributes:
        factor: to reach the loss that exact means reach; at least 1.
        spread: standard deviation of its logarithm.
        source: the results that it is from; empty: a guess by how much the plan deviates.
    """

    factor: float
    spread: float
    source: str = ""

    @property
    def low(self) -> float:
        """The lower end of the factor's 80 % interval."""
        return max(1.0, self.factor * math.exp(-1.28 * self.spread))

    @property
    def high(self) -> float:
        """The upper end."""
        return self.factor * math.exp(1.28 * self.spread)


@dataclass(frozen=True)
class Situation:
    """In which a plan is to train: how noisy gradients are, and for how long.

    Attributes:
        noise: variance of the mean gradient over the squared norm of what it estimates, as the run measured it (see
            `Profile.gradient_noise`); None: that of the studies.
        steps: that the plan is wanted for; 0: as many as in the studies, or more.
    """

    noise: float | None = None
    steps: int = 0

    @classmethod
    def of(cls, profile: Profile) -> Situation:
        """Returns that of the run that a profile is of."""
        return cls(profile.gradient_noise, profile.steps_ahead)


USUAL = Situation()


@functools.lru_cache(maxsize=8192)
def extra_steps(plan: Plan, situation: Situation = USUAL) -> ExtraSteps:
    """Returns how many times as many steps a plan needs as exact means do.

    What a plan does to a step weighs the more, the less noise there is in the step anyway: with feedback, and with
    local steps, the terms of compression and of drift stand beside the variance's in the rates (Stich and Karimireddy
    2020, arXiv:1909.05350; Koloskova et al. 2020, arXiv:2003.10422). Here the logarithm of the
    factor is taken in proportion to 1/(1 + noise): a rule of ours that follows the direction of those rates, between
    the half and the double of what was measured, and the spread grows by half of what it changes. What is lost without
    feedback by an unbiased codec is noise in proportion to the gradient and its noise alike, and stays. In a run of few
    steps, less is lost; see `STUDIED_STEPS`.

    Args:
        plan: any.
        situation: in which it is to train.

    >>> extra_steps(Plan.parse("bsp")).factor
    1.0
    """
    found = [_amid(situation, _of_answer(family, plan), family, plan) for family in FAMILIES]
    return ExtraSteps(
        factor=math.prod(part.factor for part in found),
        spread=math.hypot(*(part.spread for part in found)),
        source=", ".join(dict.fromkeys(part.source for part in found if part.source)),
    )


def slow_steps(plan: Plan, situation: Situation = USUAL) -> float:
    """Returns how many times as many steps a plan needs at the slow end: the less is known, the more.

    Which of two plans changes training less, is told by this.

    >>> slow_steps(Plan.parse("bsp")), slow_steps(Plan.parse("local:4")) < slow_steps(Plan.parse("local:16"))
    (1.0, True)
    """
    extra = extra_steps(plan, situation)
    return extra.factor * math.exp(extra.spread)


def is_studied(plan: Plan) -> bool:
    """Whether what a plan does to the loss was measured, of itself or of near relatives; else it is a guess.

    >>> is_studied(Plan.parse("local:8/allreduce/int4+ef"))
    True
    """
    return extra_steps(plan).spread < UNKNOWN


def is_measured(plan: Plan) -> bool:
    """Whether studies measured this plan's own answers, all in one row; a product of rows, or a relative's, is none.

    >>> is_measured(Plan.parse("local:8")), is_measured(Plan.parse("local:8/allreduce/int4+ef"))
    (True, False)
    """
    changed = [(family, *_alone(family, plan)) for family in FAMILIES]
    texts = [(family, text) for family, text, alone in changed if alone > 1.0]
    return not texts or (len(texts) == 1 and texts[0][1] in table()[texts[0][0]])


@functools.cache
def table() -> Mapping[str, Mapping[str, ExtraSteps]]:
    """Returns what was measured, by family and by the answer's text."""
    stored = json.loads(TABLE.read_text(encoding="utf-8"))
    return {family: {text: ExtraSteps(**row) for text, row in stored[family].items()} for family in FAMILIES}


def measured(
    trials: Iterable[Mapping[str, Any]], dense: Sequence[tuple[int, float]]
) -> dict[str, ExtraSteps]:
    """Returns the factor of each plan in some trials.

    Args:
        trials: with `plan`, `steps`, `metric` (the loss at the end) and `source`.
        dense: steps and losses at the end of dense runs.

    >>> dense = [(100, 3.0), (200, 2.5), (400, 2.0)]
    >>> measured([{"plan": "local:8", "steps": 400, "metric": 2.5, "source": "sync"}], dense)["local:8"].factor
    2.0
    """
    logs: dict[str, list[float]] = defaultdict(list)
    sources = {}
    for trial in trials:
        factor = trial["steps"] / steps_for(trial["metric"], dense)
        logs[trial["plan"]].append(math.log(min(MOST_FACTOR, max(1.0, factor))))
        sources[trial["plan"]] = trial["source"]
    return {
        plan: ExtraSteps(
            factor=round(math.exp(statistics.fmean(values)), 3),
            spread=round(max(ONE_SEED / math.sqrt(len(values)), _spread(values)), 3),
            source=sources[plan],
        )
        for plan, values in logs.items()
    }


def steps_for(loss: float, dense: Sequence[tuple[int, float]]) -> float:
    """Returns the steps in which dense gradients reach a loss, by the two runs around it, or the two nearest."""
    runs = sorted(dense)
    place = next((i for i in range(1, len(runs) - 1) if loss >= runs[i][1]), len(runs) - 1)
    (few, high), (many, low) = runs[place - 1], runs[place]
    share = (high - loss) / (high - low)
    return float(few * (many / few) ** max(-20.0, min(20.0, share)))


def _amid(situation: Situation, found: ExtraSteps, family: str, plan: Plan) -> ExtraSteps:
    """Returns an answer's factor where gradients have another noise than in the studies, or the run is shorter."""
    noise, share = situation.noise, 1.0
    is_noise_itself = family == "compression" and plan.sender.unbiased and len(plan.compression) == 1
    if noise is not None and not is_noise_itself:
        share = min(MOST_SHARE, max(LEAST_SHARE, (1 + STUDIED_NOISE) / (1 + noise)))
    length = min(1.0, (situation.steps / STUDIED_STEPS) ** GROWS_AS) if situation.steps else 1.0
    if share * length == 1.0 or found.factor == 1.0:
        return found
    share *= length
    power = math.log(found.factor)
    return ExtraSteps(
        factor=math.exp(share * power),
        spread=math.hypot(length * found.spread, 0.5 * (share - 1) * power),
        source=found.source,
    )


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _of_answer(family: str, plan: Plan) -> ExtraSteps:
    """Returns the factor of one answer, all others being exact."""
    text, alone = _alone(family, plan)
    if alone == 1.0:
        return ExtraSteps(factor=1.0, spread=0.0)
    known = table()[family]
    if text in known:
        return known[text]
    name, keeps_rest = _name(text)
    kin = [(other, row) for other, row in known.items() if _stages(other) == _stages(text)]
    if not kin:
        alike = [(other, row) for other, row in known.items() if _name(other) == (name, keeps_rest)]
        kin = [(other, row) for other, row in alike if not OTHER_OPTIMIZERS & set(_stages(other))]
    if not kin and keeps_rest:  # without feedback it is no better
        kin = [(other, row) for other, row in known.items() if _name(other)[0] == name]
    if kin:
        other, row = min(kin, key=lambda pair: abs(math.log(alone / _deviation_of(family, pair[0]))))
        more = math.log(alone) / max(1e-9, math.log(_deviation_of(family, other)))
        return ExtraSteps(factor=row.factor ** max(0.0, min(3.0, more)), spread=RELATIVE, source=row.source)
    return ExtraSteps(factor=alone**PRIOR_EXPONENT, spread=UNKNOWN)


def _alone(family: str, plan: Plan) -> tuple[str, float]:
    """Returns an answer's text, and how much a plan deviates that has this answer and else exact ones."""
    if family == "sync":
        final, _ = plan.sync.stretches()[-1]
        return str(final), final.deviation
    if family == "architecture":
        return str(plan.architecture), 1.0 if plan.architecture.agrees else 4.0
    text = plan.compression_text
    return text, _deviation_of(family, text)


@functools.cache
def _deviation_of(family: str, text: str) -> float:
    parts = {"sync": f"{text}/", "architecture": f"bsp/{text}", "compression": f"bsp/allreduce/{text}"}
    try:
        return max(1.0, deviation(Plan.parse(parts[family].strip("/"))))
    except PlanError:  # such as a policy that needs a server: its text alone is no plan
        return 4.0


def _name(text: str) -> tuple[str, bool]:
    """Returns what relatives share: the member's name, and whether feedback makes up for what it does not send."""
    first, *stages = text.split("+")
    return first.partition(":")[0], any(stage.partition(":")[0] in ("ef", "ef21") for stage in stages)


def _stages(text: str) -> tuple[str, ...]:
    """Returns the names of a text's members: those that differ in settings alone are the nearest relatives.

    >>> _stages("topk:0.01+ef")
    ('topk', 'ef')
    """
    return tuple(part.partition(":")[0] for part in text.split("+"))


def read(folder: pathlib.Path) -> dict[str, dict[str, ExtraSteps]]:
    """Returns the table of a folder of kept results."""
    trials = []
    for study in STUDIES:
        kept = json.loads((folder / f"{study}.json").read_text(encoding="utf-8"))
        trials += [
            trial | {"source": f"results/{study}.json"}
            for trial in kept["trials"]
            if trial["task"] == "text"
            and trial["metric"] is not None
            # Of unlike data, of dense gradients with the settings of other methods, of other numbers of workers.
            and not trial["scene"].startswith(("unlike", "dense with"))
            and not trial["scene"].endswith(" workers")
        ]
    by_steps: dict[int, list[float]] = defaultdict(list)
    by_seed: dict[tuple[int, int], list[float]] = defaultdict(list)
    for trial in trials:
        if trial["plan"] in DENSE:
            by_steps[trial["steps"]].append(trial["metric"])
            by_seed[trial["steps"], trial["seed"]].append(trial["metric"])
    dense = [(steps, statistics.fmean(losses)) for steps, losses in by_steps.items()]
    # A seed makes all plans better or worse alike: taken off is what it does to dense gradients.
    for trial in trials:
        if paired := by_seed.get((trial["steps"], trial["seed"])):
            trial["metric"] += statistics.fmean(by_steps[trial["steps"]]) - statistics.fmean(paired)
    longest: dict[str, int] = defaultdict(lambda: LEAST_STEPS)
    for trial in trials:
        longest[trial["plan"]] = max(longest[trial["plan"]], trial["steps"])
    judged = (t for t in trials if t["plan"] not in DENSE and t["steps"] == longest[t["plan"]])
    found: dict[str, dict[str, ExtraSteps]] = {family: {} for family in FAMILIES}
    for text, row in measured(judged, dense).items():
        try:
            plan = Plan.parse(text)
        except PlanError:  # of an earlier version
            continue
        changed = [family for family in FAMILIES if _alone(family, plan)[1] > 1.0]
        if len(changed) == 1:
            answer, _ = _alone(changed[0], plan)
            known = found[changed[0]].get(answer)
            found[changed[0]][answer] = row if known is None else max(known, row, key=lambda r: r.source)
    return found


def write(folder: str | pathlib.Path) -> None:
    """Writes the table from a folder of kept results."""
    found = read(pathlib.Path(folder))
    lines = {
        family: {text: asdict(row) for text, row in sorted(rows.items())} for family, rows in found.items()
    }
    TABLE.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
