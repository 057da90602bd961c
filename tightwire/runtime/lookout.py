"""A watch over the loss under a lossy plan: where it falls behind, training goes back, and on under a milder plan."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tightwire.plan import Plan
from tightwire.planner import STOCK
from tightwire.planner.quality import USUAL, Situation, slow_steps
from tightwire.runtime.snapshot import Snapshot
from tightwire.runtime.trainee import Trainee

# The first window. While windows are short they grow fast; later each is a share of all steps watched so far: watching
# costs ever less, and what a plan may spoil before it is found out stays a share of what was done.
FIRST_STEPS, MOST_STEPS = 20, 2000
SHORT_S, GROWTH, OF_PAST = 3.0, 4, 0.25
# A window is bad if its mean loss is above the best one's by so many standard errors of their difference, and by this
# share of it: a loss that rises a little tells of the data, or of the rate.
SIGMAS, SHARE = 4.0, 0.02
# So many bad windows in a row are no chance.
PATIENCE = 2
# A window lasts until it has so many losses, where one is told now and then: of fewer nobody knows how noisy they are.
FEWEST = 5

log = logging.getLogger("tightwire")


@dataclass(frozen=True)
class LossLevel:
    """The loss in a window: mean, and standard error of the mean."""

    mean: float
    error: float

    @classmethod
    def of(cls, losses: Sequence[float]) -> LossLevel:
        """Returns the level of some losses."""
        if not losses or not all(map(math.isfinite, losses)):
            return cls(math.inf, 0.0)
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        return cls(statistics.fmean(losses), spread / math.sqrt(len(losses)))

    def is_above(self, other: LossLevel) -> bool:
        """Whether the loss rose beyond noise.

        >>> LossLevel(2.0, 0.01).is_above(LossLevel(1.9, 0.01)), LossLevel(1.92, 0.01).is_above(LossLevel(1.9, 0.01))
        (True, False)
        """
        if not math.isfinite(self.mean):
            return True
        rise = self.mean - other.mean
        return rise > SIGMAS * math.hypot(self.error, other.error) and rise > SHARE * abs(other.mean)


class Lookout:
    """Compares the loss window by window, the same on every rank.

    Contract: every rank that trains makes one at the same step, and tells it of every step and loss; a step that ends a
    window blocks.

    Attributes:
        milder: plans to fall back on, the mildest last, plain all-reduce; those that are left.
        remarks: what was done, in sentences.
    """

    def __init__(self, plans: Sequence[str], present: Plan, situation: Situation = USUAL) -> None:
        """Takes plans that may be fallen back on.

        Args:
            plans: their texts, in the order in which they are preferred.
            present: in force.
            situation: in which they train.
        """
        self.remarks: list[str] = []
        most, self.milder = slow_steps(present, situation), list[str]()
        for text in [*plans, STOCK]:
            if (found := slow_steps(Plan.parse(text), situation)) < most:
                self.milder.append(text)
                most = found
        self._planned, self._window = 0, FIRST_STEPS
        self._watched = 0
        self._losses: list[float] = []
        self._steps = 0
        self._best: LossLevel | None = None
        self._snapshot: Snapshot | None = None
        self._bad = 0
        self._began_s = time.perf_counter()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing milder."""
        return not self.milder

    def begin(self, run: Trainee, level: LossLevel | None = None) -> None:
        """Takes the first snapshot, where nothing is under way. Every rank; blocks.

        Args:
            run: to watch over.
            level: of the loss as it was measured so far; None: the first window tells.
        """
        self._best = level
        self._snapshot = run.snapshot(remembering=True)
        self._begin_window(run)

    def after_step(self, run: Trainee, loss: float | None) -> None:
        """Counts a step, and acts where a window ends. Every rank."""
        self._steps += 1
        self._watched += 1
        if loss is not None:
            self._losses.append(loss)
        if self._steps == self._planned and not self.is_over:
            self._end_window(run)

    def _begin_window(self, run: Trainee) -> None:
        self._planned, self._steps, self._losses = self._whole(run, self._window), 0, []
        self._began_s = time.perf_counter()

    def _whole(self, run: Trainee, steps: int) -> int:
        """Returns so many steps, or a few more, to end with a round."""
        per_round = run.plan.sync.steps_per_round
        return math.ceil(steps / per_round) * per_round

    def _end_window(self, run: Trainee) -> None:
        told = json.dumps([self._losses, time.perf_counter() - self._began_s])
        answers = [json.loads(text) for text in run.ask(told) if text is not None]
        heard = [losses for losses, _ in answers if losses]  # some ranks may tell none
        means = [statistics.fmean(of_step) for of_step in zip(*heard, strict=False)]
        if len(means) < FEWEST and all(map(math.isfinite, means)):
            self._planned += min(self._planned, self._whole(run, MOST_STEPS))
            return
        level, took_s = LossLevel.of(means), answers[0][1]
        if not math.isfinite(level.mean) or (self._best is not None and level.is_above(self._best)):
            self._bad += 1
            if self._bad == PATIENCE or not math.isfinite(level.mean):
                self._fall_back(run, level)
        else:
            self._bad = 0
            if self._best is None or level.mean < self._best.mean:
                self._best, self._snapshot = level, run.snapshot(remembering=True)
            longest = GROWTH * self._window if took_s < SHORT_S else int(OF_PAST * self._watched)
            self._window = min(MOST_STEPS, max(self._window, longest))
        self._begin_window(run)

    def _fall_back(self, run: Trainee, level: LossLevel) -> None:
        assert self._snapshot is not None
        before, self._bad = run.plan, 0
        plan = Plan.parse(self.milder.pop(0))
        run.go_back(self._snapshot, plan)
        remark = (
            f"under {before} the loss is {level.mean:.4g}, after {self._best.mean if self._best else math.nan:.4g} "
            f"before: training went back to the state before, and goes on under {plan}, which changes it less."
        )
        self.remarks.append(remark)
        log.warning("%s", remark)
