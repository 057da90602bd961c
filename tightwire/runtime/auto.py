"""plan="auto" and plan="race": look at the wire and at the first steps, then go on with what suits them.

The first steps train under a plan within the allowance that is cheap on this wire: profiling needs no dense exchange.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import statistics
from collections.abc import Collection, Sequence

from torch import nn

from tightwire.cluster import Cluster
from tightwire.compression import Codec
from tightwire.errors import AttachError
from tightwire.plan import Plan, PlanFile
from tightwire.planner import STOCK, Ranking
from tightwire.planner.advice import explained
from tightwire.planner.quality import USUAL, Situation, slow_steps
from tightwire.profile import Profile, Profiler
from tightwire.profile.beside import with_device
from tightwire.runtime.choice import AHEAD, Choice, KeptChoice, PlanSearch, choice_of
from tightwire.runtime.first_steps import (
    BASELINE_STEPS,
    PARTING,
    PROFILE_STEPS,
    WARM_UP_STEPS,
    dense_exchange_s,
    watched_plan,
    without_waiting,
)
from tightwire.runtime.habits import Habits, obstacles
from tightwire.runtime.lookout import Lookout, LossLevel
from tightwire.runtime.noise import NoiseWatch, gradient_noise
from tightwire.runtime.proof import Proof
from tightwire.runtime.race import Contender, Heats, Race, plan_heats
from tightwire.runtime.racing import Racing
from tightwire.runtime.shortlist import LOOKED_AT, contenders, rank_timed, value_of
from tightwire.runtime.snapshot import Snapshot
from tightwire.runtime.step import Optimizers
from tightwire.runtime.trainee import Trainee
from tightwire.runtime.wire import Change, WireWatch
from tightwire.simulate import predict

# Going on under a plan that lets nobody part makes what optimizers remember equal: of Adam twice the parameters, over
# both levels of a tree. By so many dense exchanges that is told, and against the steps that going back would lose.
EQUAL_EXCHANGES = 2.7
# Where workers have parted, a plan must be expected to take less than this share of the present one's time to be worth
# that. A step with an exchange waits for the slowest worker each time, which no profile of a few steps tells: on two
# cores for four workers, at 1 Gb/s, such steps took up to 1.2 times what was predicted, and steps alone 0.7 to 0.9.
STAYS = 0.7
# Where it takes longer than this, plain all-reduce is not measured beside.
BASELINE_S = 0.3
# A change of plan that gains less is not worth its meeting.
WORTH = 0.95
# Once training went on for so long, all plans are looked at, as they do in the long run; which is worth leaving a plan
# that does well only if it gains more, for what its stages remember is lost.
SECOND_LOOK_S, WORTH_LATER = 300.0, 0.85
log = logging.getLogger("tightwire")


class Pilot:
    """Watches a run's first steps and then chooses its plan; has the best few race where that is asked for.

        watching → (plain all-reduce, where the wire is fast) → (racing) → looking out for the loss, if it is told

    Contract: every rank makes one, and tells it before and after every step. The step that ends a phase blocks;
    rank 0's measurements decide.

    Attributes:
        baseline_step_s: what plain all-reduce took in this run, once it is measured; None where it is not.
        choice: once it is made.
        watched: the plan of the first steps.
        instead: another one, where the model or the optimizer cannot do with that; None: all can.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        cluster: Cluster,
        search: PlanSearch,
        num_bytes: int,
        habits: Habits | None = None,
        left: Collection[str] = (),
    ) -> None:
        self.baseline_step_s: float | None = None
        self.choice: Choice | None = None
        self.habits = habits or Habits()
        dense_s = dense_exchange_s(num_bytes, cluster)
        self.watched = watched_plan(search.allow, dense_s)
        self._parts = self.watched == PARTING
        self.instead = Plan.parse(watched_plan("lossy", dense_s)) if self._parts else None
        self._start: Snapshot | None = None
        self._equal_s = EQUAL_EXCHANGES * dense_s
        self._cluster, self._search = cluster, search
        self._model, self._optimizers, self._left = model, optimizers, left
        self._profiler = Profiler(model, optimizers.members[-1])
        self._noise = NoiseWatch(p for name, p in model.named_parameters() if name not in left)
        self._profile: Profile | None = None
        self._plan_file: PlanFile | None = None
        self._exposed_s: list[float] = []
        self._steps = self._second_look = 0
        takes_baseline = dense_s <= BASELINE_S and search.race is None and not self._parts
        self._takes_baseline = takes_baseline
        self._baseline_steps = BASELINE_STEPS if takes_baseline else 1
        if self._parts:  # all meet where a round ends anyway: elsewhere that would cost another exchange
            rounds = Plan.parse(PARTING).sync.steps_per_round
            self._baseline_steps = rounds - WARM_UP_STEPS - PROFILE_STEPS
        self._heard: list[float] = []
        self._heard_any = self._is_heard = False  # here; on any rank, as of the choice
        self._racing: Racing | None = None
        self._cut_short = ""
        self._lookout: Lookout | None = None
        self._proof: Proof | None = None
        self._wire = WireWatch(cluster)
        self._probed, self._in_the_way = cluster, list[str]()
        self._told: list[str] = []

    @property
    def costs(self) -> dict[str, tuple[float, float]]:
        """What programs were measured to take."""
        return self._cluster.costs

    @property
    def kept(self) -> KeptChoice:
        """What is kept of the choice, for a restart."""
        return KeptChoice(self._search.keep, self._plan_file)

    @property
    def _situation(self) -> Situation:
        return USUAL if self._profile is None else Situation.of(self._profile)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was done since the choice, or was not, in sentences."""
        cut_short = (self._cut_short,) if self._cut_short else ()
        return (*cut_short, *self._told, *(self._lookout.remarks if self._lookout is not None else ()))

    def begin(self) -> None:
        """Starts to watch."""
        self._profiler.__enter__()
        # A mean of low rank is shorter than what gradients have in common, and would pass for noise.
        watched = Plan.parse(self.watched)
        if self._search.by == "loss" and watched.sync.is_bulk and isinstance(watched.sender, Codec):
            self._noise.begin()

    def close(self) -> None:
        """Stops watching. Local."""
        self._profiler.__exit__(None, None, None)
        self._noise.close()

    def before_step(self) -> None:
        """Stops watching once all was seen; not in `after_step`, where the optimizer goes through its hooks."""
        if self._parts and self._search.goes_back and self._steps == 0:
            self._note_start()
        if self._profile is not None:
            self.close()
        else:
            self.habits.release()  # what is read from here on, the loop did not read
            self._noise.before_step()

    def finish(self, run: Trainee) -> None:
        """Says so where training ends within a race, whose best state is then given up. Local."""
        if self._racing is None or self._cut_short:
            return
        self._cut_short = (
            f"step {run.step}: finish() came in the midst of a race: the model is that of {run.plan}, which was tried "
            "from an earlier state, and what others had reached is given up. Train for longer, or give the race a "
            "smaller budget."
        )
        log.warning("%s", self._cut_short)

    def _note_start(self) -> None:
        """Keeps where training begins: with what was loaded after attaching, too."""
        is_new = not any(member.state for member in self._optimizers.members)
        self._start = Snapshot(self._model, self._optimizers, is_equal=is_new)

    def hear(self, loss: float) -> None:
        """Takes in the loss of the step under way, or of a part of it."""
        self._heard.append(loss)
        self._heard_any = True

    def after_step(self, run: Trainee, exposed_s: float) -> None:
        """Counts a step, and acts when a phase is over."""
        loss = statistics.fmean(self._heard) if self._heard else None
        self._heard = []
        if self._racing is not None:
            self._race(run, self._racing, loss)
        elif self.choice is None:
            self._watch(run, exposed_s)
        else:
            if self._lookout is not None:
                self._watch_over(run, self._lookout, loss)
            self._prove(run)
            if (
                self._profile is not None
                and (change := self._wire.after_step(run, self._profile)) is not None
            ):
                self._plan_again(run, change)
            self._look_again(run)

    def _watch(self, run: Trainee, exposed_s: float) -> None:
        self._steps += 1
        self._exposed_s.append(exposed_s)
        watched = WARM_UP_STEPS + PROFILE_STEPS
        race = self._search.race
        if self._steps == watched and race is not None and race.judge is None and not self._heard_any:
            raise AttachError(
                "the race judges plans by their loss, and no loss was told: call run.report_loss(loss) before "
                "optimizer.step(), or give tw.Race(judge=...), which returns the loss on held-out data."
            )
        if self._steps == watched and self._takes_baseline:
            run.adopt(Plan.parse(STOCK))
        if self._steps == watched + 1:  # the profiler saw the step before only now
            self._profile = self._watched(run)
        if self._steps == watched + self._baseline_steps:
            if self._takes_baseline:
                self.baseline_step_s = run.report().step_s
            self._choose(run)
            if self._takes_baseline and run.plan != Plan.parse(STOCK):
                self._proof = Proof(run, self.baseline_step_s, self._situation)

    def _watch_over(self, run: Trainee, lookout: Lookout, loss: float | None) -> None:
        """Tells the lookout of a step; where training fell back on a milder plan, that is what is kept from then on."""
        before = len(lookout.remarks)
        lookout.after_step(run, loss)
        for remark in lookout.remarks[before:]:
            self.kept.go_on(run.transport.rank, str(run.plan), {}, (remark,))

    def _prove(self, run: Trainee) -> None:
        """Goes back to plain all-reduce where that, as measured here, is sooner at a loss than what was chosen."""
        if self._proof is None or self._proof.is_over or (refuted := self._proof.after_step(run)) is None:
            return
        assert self.choice is not None
        self._say(f"step {run.step}: {refuted}")
        self._lookout, self._second_look = None, 0
        step_s = self.baseline_step_s or 0.0
        self._decide(run, dataclasses.replace(self.choice, plan=STOCK, predicted_step_s=step_s, predicted={}))

    def _watched(self, run: Trainee) -> Profile:
        """Returns the profile of what is shared; what came after backward held the exchange, which is no compute."""
        at = next(self._model.parameters()).device
        profile = with_device(self._profiler.profile(warm_up=WARM_UP_STEPS), at)
        shared = tuple(p for p in profile.parameters if p.name not in self._left)
        profile = dataclasses.replace(profile, parameters=shared or profile.parameters)
        # Messages that cross the host did so, too, when the wire was probed.
        if at.type not in run.transport.ordered:
            profile = dataclasses.replace(profile, nccl_slowdown=1.0)
        return without_waiting(profile, statistics.median(self._exposed_s[WARM_UP_STEPS:-1]))

    def _rank(self, present: Plan, *, searches: bool) -> Ranking:
        """Ranks plans, all or those that experience suggests, and keeps what codecs were found to cost."""
        assert self._profile is not None
        race = self._search.race
        ranking = rank_timed(
            self._profile, self._cluster, self._search.allow, self._search.by,
            at=next(self._model.parameters()).device, in_the_way=self._in_the_way,
            looked_at=race.contenders if race is not None and searches else LOOKED_AT,
            searches=searches,
        )  # fmt: skip
        self._profile = ranking.profile
        if self.choice is None and not present.sync.is_bulk:
            here = next((row for row in ranking.rows if row.plan == present), None)
            value = value_of(ranking)
            if here is not None and STAYS * value(here) <= value(ranking.chosen):
                ranking = dataclasses.replace(ranking, chosen=here)
        return explained(ranking, turns=not self._search.is_quick)

    def _choose(self, run: Trainee) -> None:
        """Has rank 0 choose, or name the contenders of a race, and all go on with that."""
        mine = obstacles(self._model, self._optimizers, self.habits, run.forwards)
        # Where the loop changes gradients before the step, as by clipping, what is stepped with is not their mean.
        norms = [] if self.habits.touches_gradients else self._noise.told()
        assert self._profile is not None
        told = json.dumps([mine, norms, self._heard_any, self._search.steps_ahead(self._profile)])
        answers = [json.loads(answer) for answer in run.ask(told) if answer is not None]
        in_the_way = list(dict.fromkeys(obstacle for found, *_ in answers for obstacle in found))
        noise = gradient_noise([of_rank for _, of_rank, *_ in answers])
        self._is_heard = any(heard for _, _, heard, _ in answers)
        ahead = answers[0][-1]
        self._profile = dataclasses.replace(self._profile, gradient_noise=noise, steps_ahead=ahead)
        self._in_the_way = in_the_way
        decision = ""
        if run.transport.rank == 0:
            ranking = self._rank(run.plan, searches=not self._search.is_quick)
            self._plan_file = ranking.plan_file()
            field = list(contenders(ranking, in_the_way)) if self._search.race is not None else []
            decision = json.dumps(
                [
                    dataclasses.asdict(choice_of(ranking, in_the_way)),
                    ranking.stock.step_s,
                    [dataclasses.asdict(contender) for contender in field],
                ]
            )
        if (answer := run.ask(decision)[0]) is None:
            why = "rank 0, which measures and decides, finished before a plan was chosen."
            self._decide(run, Choice(plan=STOCK, predicted_step_s=self.baseline_step_s or 0.0, why=(why,)))
            return
        facts, stock_step_s, entered = json.loads(answer)
        choice = Choice.of(facts)
        if self._search.race is None:
            self._decide(run, choice)
        else:
            self._begin_race(
                run, self._search.race, choice, stock_step_s, [Contender(**row) for row in entered]
            )

    def _begin_race(
        self, run: Trainee, race: Race, choice: Choice, stock_step_s: float, field: Sequence[Contender]
    ) -> None:
        """Says what the race will cost, and begins it; without one where the budget is too small for any."""
        budget_s = race.budget_s(stock_step_s)
        heats = plan_heats(field, race.share * budget_s, race.contenders)
        cost = f"{race.share:.0%} of a budget of {budget_s:,.0f} s"
        if heats.fields == (1,):
            why = (
                f"{cost} is too little to try two plans for long enough to tell them apart: what `auto` chooses was "
                "taken, without a race."
            )
            self._decide(run, dataclasses.replace(choice, why=(why, *choice.why), contenders=tuple(field)))
            return
        log.info("%s", announced(heats, cost))
        self.choice = None
        self._entered = choice
        if self._start is not None and any(Plan.parse(plan).sync.is_bulk for plan in heats.entered):
            run.go_back(self._start, Plan.parse(STOCK))  # optimizers alike, for every contender to begin with
        self._start = None
        self._racing = Racing(race, field, heats, race.share * budget_s)
        self._racing.begin(run)

    def _race(self, run: Trainee, racing: Racing, loss: float | None) -> None:
        racing.after_step(run, loss)
        if racing.winner is None:
            return
        winner, losses, self._racing = racing.winner, racing.losses, None
        self.choice = dataclasses.replace(
            self._entered,
            plan=winner.plan,
            predicted_step_s=winner.step_s or winner.predicted_step_s,
            predicted={},
            why=(racing.told(),),
            contenders=tuple(racing.contenders.values()),
        )
        self._tell(run, self.choice)
        # What a judge says is of other data than the losses that are watched from here on.
        self._look_out(run, LossLevel.of(losses) if losses else None)

    def _decide(self, run: Trainee, choice: Choice) -> None:
        """Goes on with what was chosen, or with plain all-reduce if that cannot be; alike on every rank."""
        self.choice = choice
        try:
            self._go_on(run, choice)
        except AttachError as refusal:
            why = f"{choice.plan} was chosen and refused: {refusal}"
            log.warning("plan auto: %s", why)
            self.choice = dataclasses.replace(choice, plan=STOCK, predicted={}, why=(*choice.why, why))
            run.adopt(Plan.parse(STOCK))
        self._tell(run, self.choice)
        self._look_out(run, None)

    def _go_on(self, run: Trainee, choice: Choice) -> None:
        """Takes the run to a plan in the cheaper way: from where it is, or from its start."""
        plan, start = Plan.parse(choice.plan), self._start
        self._start = None
        if plan == run.plan:
            return
        lost_s = self._steps * choice.predicted_step_s
        if start is not None and plan.sync.is_bulk and lost_s < self._equal_s:
            run.go_back(start, plan)
        else:
            run.adopt(plan)

    def _plan_again(self, run: Trainee, change: Change) -> None:
        """Has rank 0 choose anew for a wire that has changed."""
        self._cluster = self._probed.scaled(change.scale)
        self._choose_anew(run, str(change), WORTH)

    def _look_again(self, run: Trainee) -> None:
        """Has rank 0 look at all plans, once training has gone on for long enough to be worth a search."""
        self._second_look -= 1
        assert self.choice is not None
        if self._second_look != 0 or self._profile is None or str(run.plan) != self.choice.plan:
            return
        self._profile = dataclasses.replace(self._profile, steps_ahead=0)
        self._choose_anew(run, "all plans were looked at, for a long run", WORTH_LATER)

    def _choose_anew(self, run: Trainee, occasion: str, worth: float) -> None:
        """Has rank 0 choose anew; all go on with that, or as they did."""
        assert self.choice is not None
        assert self._profile is not None
        decision = ""
        if run.transport.rank == 0:
            ranking = self._rank(run.plan, searches=True)
            self._plan_file = ranking.plan_file()
            present = predict(run.plan, ranking.profile, self._cluster)
            found = choice_of(ranking, self._in_the_way)
            better = predict(Plan.parse(found.plan), ranking.profile, self._cluster)
            value = value_of(ranking)
            gains = value(better) < worth * value(present)
            decision = json.dumps([dataclasses.asdict(found), present.step_s, gains])
        if (answer := run.ask(decision)[0]) is None:
            return
        facts, present_s, gains = json.loads(answer)
        found = Choice.of(facts)
        at = f"step {run.step}: {occasion}"
        if found.plan == str(run.plan) or not gains:
            self._say(f"{at}. {run.plan} is still the best, or nearly, at {present_s * 1e3:,.1f} ms a step.")
            return
        self._say(
            f"{at}. From {run.plan}, {present_s * 1e3:,.1f} ms a step on this wire, to {found.plan}, "
            f"{found.predicted_step_s * 1e3:,.1f} ms: {' '.join(found.why)}"
        )
        self._lookout = None
        self._decide(run, dataclasses.replace(found, why=self.choice.why))

    def _say(self, remark: str) -> None:
        self._told.append(remark)
        log.info("plan auto: %s", remark)

    def _tell(self, run: Trainee, choice: Choice) -> None:
        if not self._told:  # later choices have said why
            log.info("plan %s: %s", choice.plan, " ".join(choice.why))
        if self._plan_file is not None:
            predicted = self._plan_file.predicted | {"step_s": choice.predicted_step_s}
            self.kept.go_on(run.transport.rank, choice.plan, predicted, choice.why)

    def _look_out(self, run: Trainee, level: LossLevel | None) -> None:
        """Watches over the loss from now on, where it is told and the plan changes what is learned."""
        assert self.choice is not None
        # At the end of a round of the plan that is in force by then.
        if self._search.is_quick and not self._told:
            steps = max(AHEAD, math.ceil(SECOND_LOOK_S / max(self.choice.predicted_step_s, 1e-6)))
            rounds = run.plan.sync.steps_per_round
            self._second_look = math.ceil(steps / rounds) * rounds
        if self._is_heard and slow_steps(run.plan, self._situation) > 1.0:
            milder = [c.plan for c in self.choice.contenders if not c.note]
            self._lookout = Lookout(milder, run.plan, self._situation)
            self._lookout.begin(run, level)


def announced(heats: Heats, cost: str) -> str:
    """Returns what a race is about to cost, in a sentence."""
    names = ", ".join(heats.entered)
    sizes = ", then ".join(map(str, heats.fields))
    return (
        f"a race of {sizes} plans takes about {heats.total_s:.1f} s, of which at most {heats.cost_s:.1f} s are lost "
        f"({cost}); the best one's progress is kept: {names}."
    )
