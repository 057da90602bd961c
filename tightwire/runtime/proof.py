"""Whether a plan that was chosen keeps what was expected of it: its steps against those of plain all-reduce, here."""

from __future__ import annotations

import itertools
import json
import math
import time

from tightwire.planner.quality import USUAL, Situation, extra_steps
from tightwire.runtime.report import typical_step_s
from tightwire.runtime.trainee import Trainee

# The first steps under a plan connect, and some schedules look at a few; then so many are timed.
SETTLING_STEPS, TIMED_STEPS = 6, 12


class Proof:
    """Times the first steps under a plan, the same on every rank.

    Of a prediction each part may be off: on cores that workers share, codecs and small messages take more of them than
    any profile of a few steps tells. Where plain all-reduce was measured in the same run, that need not be trusted.

    Contract: every rank that trains makes one at the same step, and tells it of every step; the last one blocks.

    Attributes:
        is_over: whether it was judged.
    """

    def __init__(self, run: Trainee, baseline_step_s: float | None, situation: Situation = USUAL) -> None:
        """Begins with the plan that is in force.

        Args:
            run: that trains by it.
            baseline_step_s: what plain all-reduce took; rank 0's counts, and None proves everything.
            situation: in which it trains.
        """
        self.is_over = False
        self._plan, self._baseline_step_s = run.plan, baseline_step_s
        self._times = extra_steps(run.plan, situation).factor
        self._per_round = run.plan.sync.steps_per_round
        self._settling, self._timed = (
            math.ceil(steps / self._per_round) * self._per_round for steps in (SETTLING_STEPS, TIMED_STEPS)
        )
        self._ends_s: list[float] = []

    def after_step(self, run: Trainee) -> str | None:
        """Counts a step; returns, where the plan was judged slower to a loss than plain all-reduce, that in words."""
        if run.plan != self._plan:  # it was left for another reason
            self.is_over = True
            return None
        self._ends_s.append(time.perf_counter())
        if len(self._ends_s) < self._settling + self._timed:
            return None
        self.is_over = True
        ends_s = self._ends_s[self._settling - 1 :]
        steps_s = [end - begin for begin, end in itertools.pairwise(ends_s)]
        told = json.dumps([typical_step_s(steps_s, self._per_round), self._baseline_step_s])
        if (answer := run.ask(told)[0]) is None:  # rank 0, which decides, has finished
            return None
        step_s, baseline_s = json.loads(answer)
        if step_s is None or baseline_s is None or step_s * self._times <= baseline_s:
            return None
        more = f", and needs {self._times:.2f} times as many" if self._times > 1.0 else ""
        return (
            f"{self._plan} takes {step_s * 1e3:,.1f} ms a step{more}; plain all-reduce took {baseline_s * 1e3:,.1f} ms "
            "in this run, and is gone back to."
        )
