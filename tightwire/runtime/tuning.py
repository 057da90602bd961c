"""The search behind the schedule `auto`: a few steps of training per trial, and a log that can be read."""

from __future__ import annotations

import contextlib
import json
import logging
import statistics
import time
from typing import Any

from tightwire.catalogue import parse_member
from tightwire.errors import AttachError, PlanError
from tightwire.plan import Plan
from tightwire.runtime.choice import Choice
from tightwire.runtime.trainee import Trainee
from tightwire.schedule import ByteScheduler
from tightwire.schedule.auto import START, Auto
from tightwire.transport import Transport
from tightwire.units import print_bytes

FIRST_STEPS = 6  # until what schedules decide by is measured
SETTLING_STEPS = 2
TRIAL_STEPS = 4
# A trial that is not this much faster than the best is no improvement, and so many of them in a row end the search.
LEAST_GAIN = 0.01
PATIENCE = 7
FINALISTS = 2
# What others found good, tried first.
SEEDS = (
    "bytescheduler:1MiB,4MiB,256KiB", "bytescheduler:512KiB,1MiB,128KiB", "bytescheduler:2MiB,4MiB,512KiB",
    "bytescheduler:4MiB,8MiB,1MiB", "mgwfbp", "bytescheduler:1MiB,3MiB,256KiB", "dear",
)  # fmt: skip
SIZES = tuple(2**power for power in range(18, 25))

log = logging.getLogger("tightwire")


class Tuner:
    """Finds the schedule of a run, by trials.

    A trial is a few steps under one schedule, of which the first are not counted. When the search is over, the
    fastest trials and the start run once more, and the fastest of these stays: never slower than where it began, as
    far as a few steps can tell.

    Contract: every rank makes one and tells it of every step. Trials begin with a small message from rank 0, which
    decides.

    Attributes:
        baseline_step_s: of the start, once it is measured.
        choice: once it is made.
        remarks: nothing is done after the choice.
        instead: no other plan than the one that was asked for is begun with.
    """

    remarks: tuple[str, ...] = ()
    instead: Plan | None = None

    def __init__(self, plan: Plan, transport: Transport, seed: int = 0) -> None:
        """Prepares the search on rank 0.

        Args:
            plan: whose schedule is `auto`.
            transport: over all workers; rank 0's decisions travel on it.
            seed: of the search.

        Raises:
            AttachError: optuna is not installed.
        """
        if not isinstance(plan.schedule, Auto):
            raise PlanError(f"{plan} has no schedule to search for: write auto.")
        self.baseline_step_s: float | None = None
        self.choice: Choice | None = None
        self._plan = plan
        self._search = _Search(plan, plan.schedule.trials, seed) if transport.rank == 0 else None
        self._present = str(START)
        self._steps = -FIRST_STEPS
        self._step_s: list[float] = []
        self._last_s = 0.0

    def begin(self) -> None:
        """Begins with the run."""

    def close(self) -> None:
        """Ends with the run."""

    def hear(self, loss: float) -> None:
        """Has no use for it: schedules change no loss."""

    def before_step(self) -> None:
        """Does nothing: trials change between steps."""

    def after_step(self, run: Trainee, exposed_s: float) -> None:
        """Counts a step; where it ends a trial, begins the next. Every rank."""
        if self.choice is not None:
            return
        now_s = time.perf_counter()
        self._steps += 1
        if self._steps > SETTLING_STEPS:
            self._step_s.append(now_s - self._last_s)
        if self._steps == SETTLING_STEPS + TRIAL_STEPS:
            self._next(run)
            now_s = time.perf_counter()
        self._last_s = now_s

    def _next(self, run: Trainee) -> None:
        step_s = statistics.median(self._step_s)
        self._steps, self._step_s = 0, []
        if self.baseline_step_s is None:
            self.baseline_step_s = step_s
        answer = self._search.answer(self._present, step_s) if self._search is not None else {}
        if (decision := run.ask(json.dumps(answer))[0]) is None:
            why = "rank 0, which decides, finished before the search was over; the schedule stays as it was."
            self.choice = Choice(plan=str(run.plan), predicted_step_s=step_s, why=(why,))
            return
        told = json.loads(decision)
        self._present = told["schedule"]
        plan = self._plan.having(schedule=parse_member("schedule", self._present))
        run.adopt(plan)
        if told["over"]:
            self.choice = Choice(plan=str(plan), predicted_step_s=told["step_s"], why=(told["why"],))


class _Search:
    """Rank 0's side: what was tried, what comes next, when it is enough."""

    def __init__(self, plan: Plan, trials: int, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise AttachError(
                "the schedule auto searches with optuna, which is not installed; pip install 'tightwire[tune]', or "
                "choose a schedule, such as bytescheduler."
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._plan, self._trials = plan, trials
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=4))
        self._asked: Any = None
        self._seeds = [text for text in SEEDS if self._is_legal(text)]
        self._seen: dict[str, float] = {}
        self._since_gain = 0
        self._finals: list[str] | None = None
        self._final_s: dict[str, float] = {}

    def answer(self, tried: str, step_s: float) -> dict[str, Any]:
        """Takes in what a trial took, and says what comes next."""
        if self._finals is not None:
            return self._final(tried, step_s)
        self._take_in(tried, step_s)
        if len(self._seen) > self._trials or self._since_gain >= PATIENCE:
            best = sorted(self._seen, key=self._seen.__getitem__)
            self._finals = [*dict.fromkeys([*best[:FINALISTS], str(START)])]
            return {"schedule": self._finals[0], "over": False}
        return {"schedule": self._propose(), "over": False}

    def _take_in(self, tried: str, step_s: float) -> None:
        best_s = min(self._seen.values(), default=float("inf"))
        self._since_gain = 0 if step_s < best_s * (1.0 - LEAST_GAIN) else self._since_gain + 1
        self._seen[tried] = min(step_s, self._seen.get(tried, step_s))
        if self._asked is not None:
            self._study.tell(self._asked, step_s)
            self._asked = None
        log.info(
            "auto: trial %d of at most %d, %s: %.1f ms a step; the best so far is %s",
            len(self._seen), self._trials + 1, tried, step_s * 1e3, min(self._seen, key=self._seen.__getitem__),
        )  # fmt: skip

    def _final(self, tried: str, step_s: float) -> dict[str, Any]:
        assert self._finals is not None
        self._final_s[tried] = step_s
        log.info("auto: once more, %s: %.1f ms a step", tried, step_s * 1e3)
        left = [text for text in self._finals if text not in self._final_s]
        if left:
            return {"schedule": left[0], "over": False}
        best = min(self._final_s, key=self._final_s.__getitem__)
        why = (
            f"{best} took {self._final_s[best] * 1e3:.1f} ms a step and the start, {START}, "
            f"{self._final_s[str(START)] * 1e3:.1f} ms; {len(self._seen)} schedules were tried."
        )
        log.info("auto: %s", why)
        return {"schedule": best, "over": True, "step_s": self._final_s[best], "why": why}

    def _propose(self) -> str:
        while self._seeds:
            if (text := self._seeds.pop(0)) not in self._seen:
                return text
        text = ""
        for _ in range(20):  # what was tried already tells nothing new
            self._asked = self._study.ask()
            text = _sampled(self._asked)
            if text not in self._seen and self._is_legal(text):
                return text
            self._study.tell(self._asked, self._seen.get(text, max(self._seen.values())))
            self._asked = None
        return min(self._seen, key=self._seen.__getitem__)

    def _is_legal(self, schedule: str) -> bool:
        with contextlib.suppress(PlanError):
            self._plan.having(schedule=parse_member("schedule", schedule))
            return True
        return False


def _sampled(trial: Any) -> str:
    """Returns a schedule at a point of the search space."""
    kind = trial.suggest_categorical("schedule", ["bytescheduler", "dear", "pace", "fusion"])
    size = trial.suggest_categorical("bytes", SIZES)
    if kind != "bytescheduler":
        return str(parse_member("schedule", f"{kind}:{print_bytes(size)}"))
    credit = size * trial.suggest_int("slices of credit", 1, 4)
    fused = size // trial.suggest_categorical("slice over what is fused", (4, 16))
    return str(ByteScheduler(size, credit, fused))
