"""plan="auto" where members come and go: those who are there choose, and anew once they are far fewer or more."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

from tightwire.errors import AttachError
from tightwire.plan import Plan, PlanFile
from tightwire.planner.quality import slow_steps
from tightwire.runtime.auto import Pilot
from tightwire.runtime.choice import Choice, KeptChoice
from tightwire.runtime.course import Course
from tightwire.runtime.habits import Habits
from tightwire.runtime.lookout import Lookout
from tightwire.runtime.membership import MembersChangedError
from tightwire.runtime.trainee import Trainee
from tightwire.transport import Transport

# A plan is chosen anew for so many times as many workers as it was chosen for, or as few.
OUTGROWN = 2

log = logging.getLogger("tightwire")


class ElasticTrainee(Trainee, Protocol):
    """A run whose members come and go."""

    @property
    def course(self) -> Course:
        """What it goes through between steps."""


@dataclass(frozen=True)
class Settled:
    """What was chosen.

    Attributes:
        searches: how many there had been by then.
        workers: for how many.
        plan: in force since, as long as nobody says otherwise.
        choice: as it was made.
    """

    searches: int
    workers: int
    plan: str
    choice: Choice

    def to_json(self) -> str:
        """Returns this as text; see `of`."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Settled:
        """Reads what `to_json` wrote."""
        content = json.loads(text)
        return cls(**content | {"choice": Choice.of(content["choice"])})

    def fits(self, workers: int) -> bool:
        """Whether it is still good for so many."""
        return self.workers < OUTGROWN * workers and workers < OUTGROWN * self.workers


class ElasticPilot:
    """Has the plan of an elastic job chosen.

        members changed → the next step → a meeting → a plan is in force that suits so many: training
                                                    → else a `Pilot`: the wire, the first steps, a choice → training

    In that meeting each tells what it knows to be chosen, so that a newcomer takes it over; and from it all count
    steps alike, however many they have made before. Whoever is lost meanwhile ends a search on all alike: nothing of
    it is repeated, and after the next meeting another begins. What was chosen counts if its plan is in force, which
    members take from each other as they do everything.

    Contract: every member makes one, and tells it before and after every step. A step that ends a phase blocks.

    Attributes:
        habits: of the loop.
        instead: no other plan than the one that was asked for is begun with.
    """

    instead: Plan | None = None

    def __init__(self, look: Callable[[Transport, Habits], Pilot | PlanFile]) -> None:
        """Takes what looks at a wire, every member at once, and returns who chooses, or what was chosen before."""
        self.habits = Habits()
        self._look = look
        self._settled: Settled | None = None
        self._in_force: Plan | None = None
        self._searches = 0
        self._number: int | None = None  # of the members that met
        self._pilot: Pilot | None = None
        self._next: Pilot | None = None  # until the next step
        self._over: list[Pilot] = []
        self._watches = False  # whether the step under way began when the pilot had begun
        self._lookout: Lookout | None = None
        self._kept = KeptChoice()  # as this member had it kept
        self._heard: list[float] = []

    @property
    def choice(self) -> Choice | None:
        """The last that was made."""
        return self._settled.choice if self._settled is not None else None

    @property
    def baseline_step_s(self) -> float | None:
        """What plain all-reduce took, where the present search measured it."""
        return self._pilot.baseline_step_s if self._pilot is not None else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was done since the choice, among the present members, in sentences."""
        watches = (self._pilot, self._lookout)
        return tuple(remark for watch in watches if watch is not None for remark in watch.remarks)

    def begin(self) -> None:
        """Has nothing to watch before all have met."""

    def close(self) -> None:
        """Stops watching. Local."""
        for pilot in (*self._over, self._pilot):
            if pilot is not None:
                pilot.close()

    def before_step(self) -> None:
        """Begins and ends watches; not in `after_step`, where the optimizer goes through its hooks."""
        while self._over:
            self._over.pop().close()
        self._watches = self._pilot is not None
        if self._next is not None:
            self._pilot, self._next = self._next, None
            self._pilot.begin()
        elif self._pilot is not None:
            self._pilot.before_step()
        self.habits.release()  # what is read from here on, the loop did not read

    def hear(self, loss: float) -> None:
        """Takes in the loss of the step under way, or of a part of it."""
        self._heard.append(loss)
        if self._pilot is not None:
            self._pilot.hear(loss)

    def after_step(self, run: ElasticTrainee, exposed_s: float) -> None:
        """Counts a step, and acts when a phase is over."""
        loss, self._heard = statistics.fmean(self._heard) if self._heard else None, []
        course = run.course
        has_met = self._number == course.now.context.membership.number
        if not has_met:
            self._drop()
            if course.now.step <= course.now.began_at:  # the next step is the first that all make together
                return
        try:
            with course.undisturbed():
                course.guard(
                    (lambda: self._go_on(run, exposed_s, loss)) if has_met else (lambda: self._meet(run))
                )
        except MembersChangedError:
            log.info("plan auto: members changed meanwhile; they meet after the next step.")

    def _drop(self) -> None:
        """Ends what the members of before were about."""
        self._over += [pilot for pilot in (self._pilot,) if pilot is not None]
        self._pilot = self._next = self._lookout = None

    def _meet(self, run: ElasticTrainee) -> None:
        """Hears what was chosen, and begins a search where nothing was that suits so many."""
        number, workers = run.course.now.context.membership.number, run.transport.size
        told = run.ask(self._settled.to_json() if self._settled is not None else "")
        known = [settled for text in told if text for settled in [Settled.of(text)]]
        self._searches = max((settled.searches for settled in known), default=0)
        counting = [settled for settled in known if settled.plan == str(run.plan)]
        settled = max(counting, key=lambda settled: settled.searches, default=None)
        if workers > 1 and None not in told and not (settled is not None and settled.fits(workers)):
            self._search(run, workers, settled)
        elif settled is not None:
            self._stay(run, settled)
        elif None in told:
            why = "a worker's data was over before a plan was chosen."
            self._settle(run, Choice(plan=str(run.plan), predicted_step_s=0.0, why=(why,)))
        self._number = number

    def _search(self, run: ElasticTrainee, workers: int, before: Settled | None) -> None:
        """Looks at the wire, and has the next steps watched; or takes what was kept for this very job."""
        if before is not None:
            log.info(
                "plan auto: %s was chosen for %d workers, and there are %d: a plan is chosen anew.",
                before.plan,
                before.workers,
                workers,
            )
        self._searches += 1
        found: list[Pilot | PlanFile] = []
        run.course.guard(lambda: found.append(self._look(run.transport, self.habits)))
        if isinstance(found[0], PlanFile):
            kept = found[0]
            run.adopt(Plan.parse(kept.plan))
            predicted = {name: float(v) for name, v in kept.predicted.items() if isinstance(v, int | float)}
            step_s = predicted.get("step_s", 0.0)
            self._settle(
                run, Choice(plan=kept.plan, predicted_step_s=step_s, predicted=predicted, why=kept.why)
            )
            return
        self._next = pilot = found[0]
        run.course.now.take_costs(pilot.costs)
        watched = Plan.parse(pilot.watched)
        try:
            if watched != run.plan:
                run.adopt(watched)
        except AttachError as refusal:
            if pilot.instead is None:
                raise
            log.info("the first steps train under %s: %s", pilot.instead, refusal)
            run.adopt(pilot.instead)

    def _stay(self, run: ElasticTrainee, settled: Settled) -> None:
        """Goes on as it was chosen; where the plan changes what is learned, the loss is watched from here on."""
        self._settled = settled
        if slow_steps(run.plan) > 1.0:
            self._lookout = Lookout([], run.plan)
            self._lookout.begin(run)

    def _go_on(self, run: ElasticTrainee, exposed_s: float, loss: float | None) -> None:
        if self._pilot is not None and self._watches:
            self._pilot.after_step(run, exposed_s)
            if self._pilot.choice is not None:
                self._kept = self._pilot.kept
                self._settle(run, self._pilot.choice)
        elif self._lookout is not None:
            before = len(self._lookout.remarks)
            self._lookout.after_step(run, loss)
            for remark in self._lookout.remarks[before:]:
                self._kept.go_on(run.transport.rank, str(run.plan), {}, (remark,))
            if self._settled is not None:
                self._settle(run, self._settled.choice)

    def _settle(self, run: ElasticTrainee, choice: Choice) -> None:
        """Notes what is in force; not where members have changed by now, for others may not know of it."""
        run.course.require_undisturbed()
        is_known = self._settled is not None and self._settled.choice is choice and self._in_force is run.plan
        if not is_known:
            self._in_force = run.plan
            self._settled = Settled(self._searches, run.transport.size, str(run.plan), choice)
