"""A race at work: contenders take turns on a run, from one snapshot, and the best trains on."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tightwire.errors import AttachError, PlanError
from tightwire.plan import Plan
from tightwire.runtime.race import (
    Contender,
    Heats,
    Race,
    better_untried,
    clearly_behind,
    judged,
    last_of,
    order,
    tells_little,
)
from tightwire.runtime.report import typical_step_s
from tightwire.runtime.snapshot import Snapshot
from tightwire.runtime.trainee import Trainee

# A contender whose steps turn out so many times longer than a trial was to be has no second one.
MOST_OVERDRAFT = 2.0

log = logging.getLogger("tightwire")


@dataclass(frozen=True)
class RaceTrial:
    """What one contender did in one heat: losses of steps, means over ranks, and what the judge said at its end."""

    steps: int
    losses: tuple[float, ...]
    step_s: float
    seconds: float
    judged: float | None


class Racing:
    """Runs a race, step by step.

    Every rank hears every rank's losses and decides by the same rules, so that all decide alike. Times are those of the
    lowest rank that still trains.

    Contract: every rank makes one with equal arguments, and tells it of every step and loss; steps that end a trial
    block.

    Attributes:
        contenders: the record so far, the latest knowledge of each.
        winner: once the race is over.
    """

    def __init__(self, race: Race, contenders: Sequence[Contender], heats: Heats, cost_s: float) -> None:
        """Takes the field of the first heat.

        Args:
            race: as asked for.
            contenders: the best expected first.
            heats: how long.
            cost_s: that may be lost.
        """
        self.contenders = {c.plan: c for c in contenders}
        self.winner: Contender | None = None
        self._judge, self._heats, self._cost_s = race.judge, heats, cost_s
        self._field = list(heats.entered)
        self._heat, self._lost_s = 0, 0.0
        self._trials: dict[str, RaceTrial] = {}
        self._queue: list[str] = []
        self._running = ""
        self._base: Snapshot | None = None
        self._base_of = ""
        self._base_judged: float | None = None
        self._lead: Snapshot | None = None
        self._lead_of = ""
        self._live = ""  # the leader, while the run is just where its trial ended
        self._planned = self._whole = 0
        self._losses: list[float] = []
        self._steps_s: list[float] = []
        self._began_s = self._last_s = 0.0

    def begin(self, run: Trainee) -> None:
        """Begins the first trial, between two steps. Every rank; blocks."""
        self._base = run.snapshot()
        self._base_judged = self._ask_judge(run)
        self._begin_heat(run)

    def after_step(self, run: Trainee, loss: float | None) -> None:
        """Counts a step; where it ends a trial, judges, and begins the next. Every rank.

        Raises:
            AttachError: nobody tells the loss, and there is no judge.
        """
        now_s = time.perf_counter()
        self._steps_s.append(now_s - self._last_s)
        self._last_s = now_s
        if loss is not None:
            self._losses.append(loss)
        if len(self._steps_s) < self._planned:
            return
        if self._planned < self._whole and not self._is_hopeless(run):
            self._planned = self._whole
            self._last_s = time.perf_counter()
            return
        self._end_trial(run)

    def _is_hopeless(self, run: Trainee) -> bool:
        """Whether what a trial has shown so far is clearly behind the leader of its heat. Every rank; blocks."""
        contender = self.contenders[self._running]
        trial = _together(self._hear(run, None), contender, self._planned)
        seen = self._judged_by(self._trials | {self._running: trial})
        return self._running in clearly_behind(list(seen.values()))

    def _begin_heat(self, run: Trainee) -> None:
        self._queue, self._trials = list(self._field), {}
        self._lead, self._lead_of = None, ""
        self._next(run)

    def _next(self, run: Trainee) -> None:
        """Begins the next trial, or the next heat, or ends the race."""
        while self._queue:
            self._running = self._queue.pop(0)
            contender = self.contenders[self._running]
            trial_s = self._heats.trial_s[self._heat]
            self._planned = self._whole = contender.steps_in(trial_s)
            if (
                contender.heats
                and self._trials
                and self._planned * contender.known_step_s > MOST_OVERDRAFT * trial_s
            ):
                self._note("its shortest trial is too long for what may be lost")
                continue
            if self._trials and self._judge is None:  # there is a leader to be behind of
                self._planned = min(self._whole, contender.least_steps)
            self._began_s = time.perf_counter()
            try:
                self._go_to(run, Plan.parse(self._running))
            except (AttachError, PlanError) as refusal:
                self._note(f"refused: {refusal}")
                continue
            self._losses, self._steps_s = [], []
            self._last_s = time.perf_counter()
            return
        self._end_heat(run)

    def _go_to(self, run: Trainee, plan: Plan) -> None:
        assert self._base is not None
        if self._live == self._running == self._base_of:  # there already
            return
        self._live = ""
        run.go_back(self._base, plan, remembering=self._running == self._base_of)

    def _end_trial(self, run: Trainee) -> None:
        """Hears all ranks, keeps the state of the best so far."""
        contender = self.contenders[self._running]
        trial = _together(self._hear(run, self._ask_judge(run)), contender, self._planned)
        self._trials[self._running] = trial
        self.contenders[self._running] = replace(
            contender,
            steps=contender.steps + self._planned,
            seconds=contender.seconds + trial.seconds,
            heats=contender.heats + 1,
        )
        self._lost_s += trial.seconds
        ranked = self._judge_all()
        log.info(
            "race: heat %d, %s: %d steps of %.1f ms, loss %s",
            self._heat + 1, self._running, self._planned, trial.step_s * 1e3, self._told_of(self._running),
        )  # fmt: skip
        if ranked[0].plan == self._running and ranked[0].loss is not None:
            self._lead, self._lead_of = run.snapshot(remembering=True), self._running
            self._live = self._running
        self._next(run)

    def _hear(self, run: Trainee, judgement: float | None) -> list[dict[str, object]]:
        """Returns what every rank tells of the trial so far."""
        rounds = self.contenders[self._running].steps_per_round
        told = {
            "losses": self._losses,
            "step_s": typical_step_s(self._steps_s[1:], rounds),
            "seconds": time.perf_counter() - self._began_s,
            "judged": judgement,
        }
        return [json.loads(text) for text in run.ask(json.dumps(told)) if text is not None]

    def _judge_all(self) -> list[Contender]:
        """Judges what ran in this heat by what all of it showed; the best first."""
        self.contenders |= (found := self._judged_by(self._trials))
        return order(list(found.values()))

    def _judged_by(self, trials: Mapping[str, RaceTrial]) -> dict[str, Contender]:
        starts = [t.losses[0] for t in trials.values() if t.losses and math.isfinite(t.losses[0])]
        start = statistics.fmean(starts) if starts else math.nan
        return {
            plan: judged(self.contenders[plan], trial.losses, trial.step_s, start)
            if trial.judged is None
            else _by_judge(self.contenders[plan], trial, self._base_judged)
            for plan, trial in trials.items()
        }

    def _end_heat(self, run: Trainee) -> None:
        ranked = self._judge_all() or [self.contenders[plan] for plan in self._field]
        if self._lead is not None:
            self._base, self._base_of = self._lead, self._lead_of
            self._base_judged = self._trials[self._lead_of].judged
            self._lost_s -= self._trials[self._lead_of].seconds
        self._heat += 1
        beaten = clearly_behind(ranked)
        is_last = (
            self._heat >= len(self._heats.fields)
            or self._lost_s >= self._cost_s
            or len(ranked) - len(beaten) < 2
            or tells_little(ranked)
        )
        keep = 1 if is_last else self._heats.fields[self._heat]
        self._field = [c.plan for c in ranked if c.plan not in beaten][:keep]
        for out in ranked:
            if out.plan not in self._field:
                note = out.note or f"behind in heat {self._heat}"
                self.contenders[out.plan] = replace(out, note=note)
        if is_last:
            self._end(run, ranked)
        else:
            self._begin_heat(run)

    def _end(self, run: Trainee, ranked: Sequence[Contender]) -> None:
        """The best that can be had trains on, from the best state."""
        able = [c for c in ranked if c.loss_per_s is not None and math.isfinite(c.loss_per_s)]
        if not able:
            raise AttachError(
                "no plan of the race could be tried: "
                + "; ".join(f"{c.plan} {c.note}" for c in self.contenders.values())
                + ". Choose a plan by name, such as bsp."
            )
        others = [c for c in self.contenders.values() if not c.heats and not c.note]
        for self._running in (c.plan for c in (better_untried(able, others), able[0]) if c is not None):
            try:
                self._go_to(run, Plan.parse(self._running))
                break
            except (AttachError, PlanError) as refusal:
                if self._running == able[0].plan:
                    raise
                self._note(f"refused: {refusal}")
        self._note("")
        self.winner = self.contenders[self._running]

    @property
    def losses(self) -> Sequence[float]:
        """Those of training that the winner's last trial ended with; none where none were told, or it did not run."""
        trial = self._trials.get(self.winner.plan) if self.winner is not None else None
        return () if trial is None else last_of(trial.losses)

    @property
    def lost_s(self) -> float:
        """Seconds of trials whose progress was not kept."""
        return self._lost_s

    def told(self) -> str:
        """Returns how the race went, in a sentence."""
        assert self.winner is not None
        entered = self._heats.entered
        rates = ", ".join(f"{plan} {self._told_of(plan)}" for plan in entered)
        won = (
            f"{self.winner.plan} won a race of {len(entered)}, in {self._heat} heats"
            if self.winner.heats
            else f"{self.winner.plan} is expected to be better than all of a race of {len(entered)}, for which its "
            "rounds are too long"
        )
        return (
            f"{won}; the time of the others, {self._lost_s:.1f} s, is lost (at most {self._cost_s:.1f} s were "
            f"planned): {rates}."
        )

    def _told_of(self, plan: str) -> str:
        c = self.contenders[plan]
        if c.loss_per_s is None or c.loss is None:
            return c.note or "not tried"
        return f"{c.loss:.4g}, falling by {c.loss_per_s:.3g} per second"

    def _note(self, note: str) -> None:
        self.contenders[self._running] = replace(self.contenders[self._running], note=note)

    def _ask_judge(self, run: Trainee) -> float | None:
        if self._judge is None:
            return None
        with run.evaluating(), torch.no_grad():
            return float(self._judge())


def _together(answers: Sequence[dict[str, object]], contender: Contender, steps: int) -> RaceTrial:
    """Returns what ranks say as one trial; losses as many as every rank told.

    Raises:
        AttachError: on every rank alike, some told none, and there is no judge.
    """
    first = answers[0]
    losses = [_floats(answer["losses"]) for answer in answers]
    judgements = [x for answer in answers for x in _floats([answer["judged"]])]
    if not judgements and not all(losses):
        raise AttachError(
            f"{contender.plan} was tried for {steps} steps, and some rank told the loss of none of them: call "
            "run.report_loss(loss) before every optimizer.step(), on every rank, or give tw.Race(judge=...), which "
            "returns the loss on held-out data."
        )
    return RaceTrial(
        steps=steps,
        losses=tuple(statistics.fmean(of_step) for of_step in zip(*losses, strict=False)),
        step_s=next(iter(_floats([first["step_s"]])), contender.known_step_s),
        seconds=_floats([first["seconds"]])[0],
        judged=statistics.fmean(judgements) if judgements else None,
    )


def _floats(values: object) -> list[float]:
    assert isinstance(values, list)
    return [float(value) for value in values if value is not None]


def _by_judge(contender: Contender, trial: RaceTrial, start: float | None) -> Contender:
    """Judges by the loss on held-out data, before and after: both on the same data, so that nothing is weighed."""
    assert trial.judged is not None
    assert start is not None
    if not math.isfinite(trial.judged):
        return replace(
            contender, step_s=trial.step_s, loss=None, loss_per_s=-math.inf, error=0.0, note="diverged"
        )
    per_s = (start - trial.judged) / (trial.steps * trial.step_s)
    return replace(
        contender,
        step_s=trial.step_s,
        loss=trial.judged,
        loss_per_s=per_s,
        error=0.0,
        judged_steps=trial.steps,
    )
