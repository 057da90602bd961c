"""plan="auto": measure the wire, the model and plain all-reduce during the first steps, then go on with the best plan.

The first steps train under lossless plans, so that measuring changes no result.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import statistics
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.planner import STOCK, Allowance, Ranking, candidates, recommend
from tightwire.profile import Profile, Profiler, measure_codecs, measure_pass
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

    def ask(self, answer: str) -> str | None:
        """Returns rank 0's answer; None once rank 0 is finished. Every rank that trains."""

    def report(self) -> Report:
        """Returns what happened so far."""


# Nothing travels during backward under this plan, so compute is seen undisturbed.
WATCHED = "bsp/allreduce/none/sequential"
WARM_UP_STEPS = 2
PROFILE_STEPS = 5
BASELINE_STEPS = 4
PROBE_BUDGET_S = 3.0

log = logging.getLogger("tightwire")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the planner decided, the same on every rank.

    Attributes:
        plan: its text.
        predicted_step_s: what a step is expected to take.
        why: the reasons.
    """

    plan: str
    predicted_step_s: float
    why: tuple[str, ...]


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
            self._profile = self._watched()
        elif self._steps == WARM_UP_STEPS + PROFILE_STEPS + BASELINE_STEPS and self.choice is None:
            self.baseline_step_s = run.report().step_s
            self.choice = self._choose(run)
            log.info("plan %s: %s", self.choice.plan, " ".join(self.choice.why))
            run.adopt(Plan.parse(self.choice.plan))

    def _watched(self) -> Profile:
        """Returns the profile; what came after backward held the exchange, which is no compute."""
        profile = self._profiler.profile(warm_up=WARM_UP_STEPS)
        exposed_s = statistics.median(self._exposed_s[WARM_UP_STEPS:-1])
        codecs = {plan.compression_text for plan in candidates(profile.num_bytes, "lossy")}
        return dataclasses.replace(
            profile,
            optimizer_s=max(0.0, profile.optimizer_s - exposed_s),
            codecs=measure_codecs(sorted(codecs)),
            pass_s_per_element=measure_pass(),
        )

    def _choose(self, run: Trainee) -> Choice:
        decision = ""
        if run.transport.rank == 0:
            assert self._profile is not None
            ranking = recommend(self._profile, self._cluster, allow=self._allow)
            decision = json.dumps(dataclasses.asdict(_choice(ranking)))
        if (answer := run.ask(decision)) is None:
            why = "rank 0, which measures and decides, finished before a plan was chosen."
            return Choice(plan=STOCK, predicted_step_s=self.baseline_step_s or 0.0, why=(why,))
        facts = json.loads(answer)
        return Choice(**facts | {"why": tuple(facts["why"])})


def _choice(ranking: Ranking) -> Choice:
    return Choice(plan=str(ranking.chosen.plan), predicted_step_s=ranking.chosen.step_s, why=ranking.why)
