"""What plan="auto" searches for, and what was chosen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tightwire.plan import PlanFile
from tightwire.planner import Allowance, Ranking
from tightwire.planner.candidates import begins_as_it_goes_on, keeps_optimizer
from tightwire.planner.ranking import By, usual
from tightwire.probe import PROGRAMS
from tightwire.profile import Profile
from tightwire.runtime.race import Contender, Race
from tightwire.runtime.shortlist import value_of

# How long the wire is probed: long enough for programs to be told apart, where all plans are; else for its rate, and
# what the library's own all-reduce makes of it.
PROBE_BUDGET_S, QUICK_PROBE_S = 1.5, 0.3
# What the plans of the short list send by.
QUICK_PROGRAMS = ("native", "ring", "direct", "allgather")
# Plans by which less is learnt per step are compared over so many steps at first, for nobody tells how long training
# goes on.
AHEAD = 200
# Plans that stay on the record.
MOST_CONSIDERED = 20


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the planner decided, the same on every rank.

    Attributes:
        plan: its text.
        predicted_step_s: what a step is expected to take.
        predicted: the parts of it that are known: `exposed_s` and `codec_s`.
        why: the reasons.
        considered: the best plans that were looked at, with what their steps are expected to take.
        contenders: of a race, the best expected first.
    """

    plan: str
    predicted_step_s: float
    why: tuple[str, ...]
    predicted: Mapping[str, float] = field(default_factory=dict)
    considered: tuple[tuple[str, float], ...] = ()
    contenders: tuple[Contender, ...] = ()

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Choice:
        """Reads what `dataclasses.asdict` made of one and JSON carried; without contenders."""
        considered = tuple((plan, step_s) for plan, step_s in facts["considered"])
        return cls(**{**facts, "why": tuple(facts["why"]), "considered": considered, "contenders": ()})


@dataclass(frozen=True, kw_only=True)
class PlanSearch:
    """What is searched for.

    Attributes:
        allow: what plans may change about training.
        race: whose trials decide among the best few; None: predictions decide.
        keep: is told what was chosen, as a plan file, on rank 0.
        goes_back: whether training may go back to where the first steps began.
    """

    allow: Allowance
    race: Race | None = None
    keep: Callable[[PlanFile], None] = lambda plan_file: None
    goes_back: bool = True

    @property
    def by(self) -> By:
        """What plans are compared by."""
        return usual(self.allow)

    @property
    def is_quick(self) -> bool:
        """Whether training is not to wait for a search: it is compared by what is learnt in a time, from the start."""
        return self.by == "loss"

    @property
    def probe_s(self) -> float:
        """How long to probe the wire."""
        return min(PROBE_BUDGET_S, QUICK_PROBE_S) if self.is_quick else PROBE_BUDGET_S

    @property
    def probed(self) -> tuple[str, ...]:
        """Which programs are probed."""
        return QUICK_PROGRAMS[:1] if self.is_quick else PROGRAMS

    @property
    def programs(self) -> tuple[str, ...]:
        """Whose plans compete."""
        return QUICK_PROGRAMS if self.is_quick else PROGRAMS

    def steps_ahead(self, profile: Profile) -> int:
        """Returns the steps that plans are compared over at first; 0: many."""
        if not self.is_quick:
            return 0
        if self.race is None:
            return AHEAD
        return math.ceil(self.race.budget_s(profile.compute_s) / max(profile.compute_s, 1e-6))


@dataclass(frozen=True)
class KeptChoice:
    """What is kept of a choice for a restart: on rank 0, which measured for it; elsewhere nothing.

    Attributes:
        keep: writes a plan file.
        plan_file: of the choice.
    """

    keep: Callable[[PlanFile], None] = lambda plan_file: None
    plan_file: PlanFile | None = None

    def go_on(self, rank: int, plan: str, predicted: dict[str, Any], why: tuple[str, ...]) -> None:
        """Has a plan kept that is in force from now on, on rank 0."""
        if self.plan_file is not None and rank == 0:
            self.keep(dataclasses.replace(self.plan_file, plan=plan, predicted=predicted, why=why))


def choice_of(ranking: Ranking, in_the_way: Sequence[str]) -> Choice:
    """Returns the plan to go on with: the ranking's, unless the loop does what its schedule cannot bear."""
    chosen, why = ranking.chosen, ranking.why
    if in_the_way and chosen.plan.schedule.overlaps_forward:
        why = (
            f"{chosen.plan} would be the best at {chosen.step_s * 1e3:.1f} ms a step, and is left out as every "
            f"schedule under which the next forward begins early: {'; '.join(in_the_way)}.",
        )
        others = [
            row
            for row in (*ranking.rows, ranking.stock)
            if not row.plan.schedule.overlaps_forward
            and keeps_optimizer(row.plan)
            and begins_as_it_goes_on(row.plan)
        ]
        chosen = min(others, key=value_of(ranking))
    considered = tuple((str(row.plan), row.step_s) for row in ranking.rows[:MOST_CONSIDERED])
    parts = {"exposed_s": chosen.exposed_s, "codec_s": chosen.codec_s}
    return Choice(
        plan=str(chosen.plan), predicted_step_s=chosen.step_s, predicted=parts, why=why, considered=considered
    )
