"""plan="auto": measure the wire, the model and plain all-reduce during the first steps, then go on with the best plan.

The first steps train under lossless plans, so that measuring changes no result.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from tightwire.cluster import Cluster
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.planner import STOCK, Allowance, Ranking, candidates, recommend
from tightwire.profile import Profile, Profiler, measure_codecs, measure_pass
from tightwire.runtime.habits import Habits, obstacles
from tightwire.runtime.report import Report
from tightwire.runtime.step import Optimizers
from tightwire.transport import Transport


class Trainee(Protocol):
    """What a search for a plan needs of the run that it searches for."""

    @property
    def plan(self) -> Plan:
        """In force at present."""

    @property
    def transport(self) -> Transport:
        """Between this worker and the others."""

    def adopt(self, plan: Plan) -> None:
        """Goes on under another plan. Every rank that trains."""

    def ask(self, answer: str) -> list[str | None]:
        """Returns what every rank answers; None of those that are finished. Every rank that trains."""

    @property
    def forwards(self) -> int:
        """Forward passes seen on this rank."""

    def report(self) -> Report:
        """Returns what happened so far."""


# Nothing travels during backward under this plan, so compute is seen undisturbed.
WATCHED = "bsp/allreduce/none/sequential"
WARM_UP_STEPS = 2
PROFILE_STEPS = 5
BASELINE_STEPS = 4
PROBE_BUDGET_S = 3.0
# Plans that stay on the record.
MOST_CONSIDERED = 20

log = logging.getLogger("tightwire")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the planner decided, the same on every rank.

    Attributes:
        plan: its text.
        predicted_step_s: what a step is expected to take.
        why: the reasons.
        considered: the fastest plans that were looked at, with what their steps are expected to take.
    """

    plan: str
    predicted_step_s: float
    why: tuple[str, ...]
    considered: tuple[tuple[str, float], ...] = ()


class Pilot:
    """Watches a run's first steps and then chooses its plan.

    Contract: every rank makes one, and tells it before and after every step. The step that ends a phase blocks;
    rank 0's measurements decide.

    Attributes:
        baseline_step_s: what plain all-reduce took in this run, once it is measured.
        choice: once it is made.
    """

    def __init__(self, model: nn.Module, optimizers: Optimizers, cluster: Cluster, allow: Allowance) -> None:
        self.baseline_step_s: float | None = None
        self.choice: Choice | None = None
        self._cluster, self._allow = cluster, allow
        self.habits = Habits()
        self._model, self._optimizers = model, optimizers
        self._profiler = Profiler(model, optimizers.members[-1])
        self._profile: Profile | None = None
        self._exposed_s: list[float] = []
        self._steps = 0

    @property
    def costs(self) -> dict[str, tuple[float, float]]:
        """What programs were measured to take."""
        return self._cluster.costs

    def begin(self) -> None:
        """Starts to watch."""
        self._profiler.__enter__()

    def close(self) -> None:
        """Stops watching. Local."""
        self._profiler.__exit__(None, None, None)

    def before_step(self) -> None:
        """Stops watching once all was seen; not in `after_step`, where the optimizer goes through its hooks."""
        if self._profile is not None:
            self.close()

    def after_step(self, run: Trainee, exposed_s: float) -> None:
        """Counts a step, and acts when a phase is over."""
        self._steps += 1
        self._exposed_s.append(exposed_s)
        if self._steps == WARM_UP_STEPS + PROFILE_STEPS:
            run.adopt(Plan.parse(STOCK))
        elif self._steps == WARM_UP_STEPS + PROFILE_STEPS + 1:  # the profiler saw the step before only now
            self._profile = self._watched(measures=run.transport.rank == 0)
        elif self._steps == WARM_UP_STEPS + PROFILE_STEPS + BASELINE_STEPS and self.choice is None:
            self.baseline_step_s = run.report().step_s
            self.choice = self._choose(run)
            log.info("plan %s: %s", self.choice.plan, " ".join(self.choice.why))
            self._adopt(run, self.choice)

    def _adopt(self, run: Trainee, choice: Choice) -> None:
        """Goes on with what was chosen, or with plain all-reduce if that cannot be; alike on every rank."""
        try:
            run.adopt(Plan.parse(choice.plan))
        except AttachError as refusal:
            why = f"{choice.plan} was chosen and refused: {refusal}"
            log.warning("plan auto: %s", why)
            self.choice = dataclasses.replace(choice, plan=STOCK, why=(*choice.why, why))
            run.adopt(Plan.parse(STOCK))

    def _watched(self, *, measures: bool) -> Profile:
        """Returns the profile; what came after backward held the exchange, which is no compute.

        Args:
            measures: whether to measure codecs too, on the rank that decides.
        """
        profile = self._profiler.profile(warm_up=WARM_UP_STEPS)
        exposed_s = statistics.median(self._exposed_s[WARM_UP_STEPS:-1])
        codecs = (
            {plan.compression_text for plan in candidates(profile.num_bytes, "lossy")} if measures else set()
        )
        return dataclasses.replace(
            profile,
            optimizer_s=max(0.0, profile.optimizer_s - exposed_s),
            codecs=measure_codecs(sorted(codecs)),
            pass_s_per_element=measure_pass(),
        )

    def _choose(self, run: Trainee) -> Choice:
        decision = ""
        mine = obstacles(self._model, self._optimizers, self.habits, run.forwards)
        told = [json.loads(answer) for answer in run.ask(json.dumps(mine)) if answer is not None]
        in_the_way = list(dict.fromkeys(obstacle for of_rank in told for obstacle in of_rank))
        if run.transport.rank == 0:
            assert self._profile is not None
            ranking = recommend(self._profile, self._cluster, allow=self._allow)
            decision = json.dumps(dataclasses.asdict(_choice(ranking, in_the_way)))
        if (answer := run.ask(decision)[0]) is None:
            why = "rank 0, which measures and decides, finished before a plan was chosen."
            return Choice(plan=STOCK, predicted_step_s=self.baseline_step_s or 0.0, why=(why,))
        facts = json.loads(answer)
        considered = tuple((plan, step_s) for plan, step_s in facts["considered"])
        return Choice(**facts | {"why": tuple(facts["why"]), "considered": considered})


def _choice(ranking: Ranking, in_the_way: Sequence[str]) -> Choice:
    """Returns the plan to go on with: the ranking's, unless the loop does what its schedule cannot bear."""
    chosen, why = ranking.chosen, ranking.why
    if in_the_way and chosen.plan.schedule.overlaps_forward:
        why = (
            f"{chosen.plan} would be the fastest at {chosen.step_s * 1e3:.1f} ms a step, and is left out as every "
            f"schedule under which the next forward begins early: {'; '.join(in_the_way)}.",
        )
        others = [row for row in (*ranking.rows, ranking.stock) if not row.plan.schedule.overlaps_forward]
        chosen = min(others, key=lambda row: row.step_s)
    considered = tuple((str(row.plan), row.step_s) for row in ranking.rows[:MOST_CONSIDERED])
    return Choice(plan=str(chosen.plan), predicted_step_s=chosen.step_s, why=why, considered=considered)
