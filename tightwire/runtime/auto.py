"""plan="auto" and plan="race": look at the wire and at the first steps, then go on with what suits them.

The first steps train under a plan within the allowance that is cheap on this wire: profiling needs no dense exchange.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tightwire.cluster import Cluster
from tightwire.compression import Codec
from tightwire.errors import AttachError
from tightwire.plan import Plan, PlanFile
from tightwire.planner import STOCK, Allowance, Ranking
from tightwire.planner.advice import explained
from tightwire.planner.candidates import begins_as_it_goes_on, keeps_optimizer
from tightwire.planner.quality import USUAL, Situation, slow_steps
from tightwire.planner.ranking import By, usual
from tightwire.probe import PROGRAMS
from tightwire.profile import Profile, Profiler
from tightwire.profile.beside import with_device
from tightwire.runtime.habits import Habits, obstacles
from tightwire.runtime.lookout import Lookout, LossLevel
from tightwire.runtime.noise import NoiseWatch, gradient_noise
from tightwire.runtime.race import Contender, Heats, Race, plan_heats
from tightwire.runtime.racing import Racing
from tightwire.runtime.shortlist import LOOKED_AT, contenders, rank_timed, value_of
from tightwire.runtime.snapshot import Snapshot
from tightwire.runtime.step import Optimizers
from tightwire.runtime.trainee import Trainee
from tightwire.runtime.wire import Change, WireWatch
from tightwire.simulate import predict

# Nothing travels during backward under this plan, so compute is seen undisturbed.
WATCHED = "bsp/allreduce/none/sequential"
WARM_UP_STEPS = 2
PROFILE_STEPS = 3
BASELINE_STEPS = 4
# How long the wire is probed: long enough for programs to be told apart, where all plans are; else for its rate, and
# what the library's own all-reduce makes of it.
PROBE_BUDGET_S, QUICK_PROBE_S = 1.5, 0.3
# What the plans of the short list send by.
QUICK_PROGRAMS = ("native", "ring", "direct", "allgather")
# Where a dense exchange takes longer than this, the first steps send less, if the allowance lets them.
CHEAP_S = 0.05
# Dense exchanges longer than this are sent as int8 and no longer as bf16, and longer than the next by powersgd.
MODERATE_S, LONG_S = 0.4, 1.0
# Where workers may part for a while, the first steps need nothing of a wire on which dense exchanges take longer than
# this, and show what steps alone take. They are kept if the plan that is chosen lets workers part, too.
PARTING, PART_S = "local:8/allreduce/int8", 0.1
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
# Plans by which less is learnt per step are compared over so many steps at first, for nobody tells how long training
# goes on. Once it went on for so long, all plans are looked at, as they do in the long run; which is worth leaving a
# plan that does well only if it gains more, for what its stages remember is lost.
AHEAD, SECOND_LOOK_S, WORTH_LATER = 200, 300.0, 0.85
# Plans that stay on the record.
MOST_CONSIDERED = 20

log = logging.getLogger("tightwire")


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
        self._model, self._optimizers = model, optimizers
        self._profiler = Profiler(model, optimizers.members[-1])
        self._noise = NoiseWatch(model.parameters())
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
        self._heard_any = False
        self._racing: Racing | None = None
        self._lookout: Lookout | None = None
        self._wire = WireWatch(cluster)
        self._probed, self._in_the_way = cluster, list[str]()
        self._told: list[str] = []

    @property
    def costs(self) -> dict[str, tuple[float, float]]:
        """What programs were measured to take."""
        return self._cluster.costs

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was done since the choice, in sentences."""
        return (*self._told, *(self._lookout.remarks if self._lookout is not None else ()))

    def begin(self) -> None:
        """Starts to watch."""
        self._profiler.__enter__()
        # A mean of low rank is shorter than what gradients have in common, and would pass for noise.
        watched = Plan.parse(self.watched)
        if self._search.by == "loss" and watched.sync.is_bulk and isinstance(watched.sender, Codec):
            self._noise.begin()
        if self._parts and self._search.goes_back:
            is_new = not any(member.state for member in self._optimizers.members)
            self._start = Snapshot(self._model, self._optimizers, is_equal=is_new)

    def close(self) -> None:
        """Stops watching. Local."""
        self._profiler.__exit__(None, None, None)
        self._noise.close()

    def before_step(self) -> None:
        """Stops watching once all was seen; not in `after_step`, where the optimizer goes through its hooks."""
        if self._profile is not None:
            self.close()
        else:
            self.habits.release()  # what is read from here on, the loop did not read
            self._noise.before_step()

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
                self._lookout.after_step(run, loss)
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

    def _watched(self, run: Trainee) -> Profile:
        """Returns the profile; what came after backward held the exchange, which is no compute."""
        at = next(self._model.parameters()).device
        profile = with_device(self._profiler.profile(warm_up=WARM_UP_STEPS), at)
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
        answers = [json.loads(answer) for answer in run.ask(json.dumps([mine, norms])) if answer is not None]
        in_the_way = list(dict.fromkeys(obstacle for found, _ in answers for obstacle in found))
        assert self._profile is not None
        noise = gradient_noise([of_rank for _, of_rank in answers])
        ahead = self._search.steps_ahead(self._profile)
        self._profile = dataclasses.replace(self._profile, gradient_noise=noise, steps_ahead=ahead)
        self._in_the_way = in_the_way
        decision = ""
        if run.transport.rank == 0:
            ranking = self._rank(run.plan, searches=not self._search.is_quick)
            self._plan_file = ranking.plan_file()
            field = list(contenders(ranking, in_the_way)) if self._search.race is not None else []
            decision = json.dumps(
                [
                    dataclasses.asdict(_choice(ranking, in_the_way)),
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
        winner, self._racing = racing.winner, None
        self.choice = dataclasses.replace(
            self._entered,
            plan=winner.plan,
            predicted_step_s=winner.step_s or winner.predicted_step_s,
            predicted={},
            why=(racing.told(),),
            contenders=tuple(racing.contenders.values()),
        )
        self._tell(run, self.choice)
        self._look_out(run, LossLevel(winner.loss, 0.0) if winner.loss is not None else None)

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
            found = _choice(ranking, self._in_the_way)
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
        if self._plan_file is not None and run.transport.rank == 0:
            predicted = self._plan_file.predicted | {"step_s": choice.predicted_step_s}
            self._search.keep(
                dataclasses.replace(self._plan_file, plan=choice.plan, predicted=predicted, why=choice.why)
            )

    def _look_out(self, run: Trainee, level: LossLevel | None) -> None:
        """Watches over the loss from now on, where it is told and the plan changes what is learned."""
        assert self.choice is not None
        # At the end of a round of the plan that is in force by then.
        if self._search.is_quick and not self._told:
            steps = max(AHEAD, math.ceil(SECOND_LOOK_S / max(self.choice.predicted_step_s, 1e-6)))
            rounds = run.plan.sync.steps_per_round
            self._second_look = math.ceil(steps / rounds) * rounds
        situation = USUAL if self._profile is None else Situation.of(self._profile)
        if self._heard_any and slow_steps(run.plan, situation) > 1.0:
            milder = [c.plan for c in self.choice.contenders if not c.note]
            self._lookout = Lookout(milder, run.plan, situation)
            self._lookout.begin(run, level)


def dense_exchange_s(num_bytes: int, cluster: Cluster) -> float:
    """Returns how long exact means of all gradients occupy the wire."""
    return 2 * (cluster.workers - 1) / cluster.workers * num_bytes / cluster.bandwidth_bytes_per_s


def without_waiting(profile: Profile, exposed_s: float) -> Profile:
    """Returns the profile of steps without what they waited for the wire.

    Waiting is no compute, and no sign of a busy processor either. It comes after the last gradient: within what is
    taken for the backward pass, where the exchange ends before backward returns, and else in the optimizer's time.

    >>> seen = Profile.uniform(layers=1, numel_per_layer=8, forward_s=1.0, backward_s=1.0, optimizer_s=2.0)
    >>> seen = dataclasses.replace(seen, backward_s=1.5, contention=4.5)
    >>> found = without_waiting(seen, 1.5)
    >>> found.backward_s, found.optimizer_s, round(found.contention, 6)
    (1.0, 1.0, 3.0)

    Args:
        profile: of steps in which the exchange came after backward.
        exposed_s: how long a step waited.
    """
    last_s = max((p.ready_s for p in profile.parameters), default=profile.backward_s)
    in_backward_s = min(exposed_s, profile.backward_s - last_s)
    after_s = min(exposed_s - in_backward_s, profile.optimizer_s)
    share = 1.0 - (in_backward_s + after_s) / profile.compute_s if profile.compute_s else 1.0
    return dataclasses.replace(
        profile,
        backward_s=profile.backward_s - in_backward_s,
        optimizer_s=profile.optimizer_s - after_s,
        contention=max(1.0, profile.contention * share),
    )


def watched_plan(allow: Allowance, dense_s: float) -> str:
    """Returns the plan of the first steps: mild, and cheap on a wire on which a dense exchange takes so long.

    >>> watched_plan("lossless", 2.0), watched_plan("lossy", 0.2), watched_plan("stale", 0.8)
    ('bsp/allreduce/none/sequential', 'bsp/allreduce/bf16/sequential', 'local:8/allreduce/int8')
    """
    if allow == "lossless" or dense_s <= CHEAP_S:
        return WATCHED
    if allow == "stale" and dense_s > PART_S:
        return PARTING
    compression = "bf16" if dense_s <= MODERATE_S else "int8+ef" if dense_s <= LONG_S else "powersgd:4+ef"
    return f"bsp/allreduce/{compression}/sequential"


def announced(heats: Heats, cost: str) -> str:
    """Returns what a race is about to cost, in a sentence."""
    names = ", ".join(heats.entered)
    sizes = ", then ".join(map(str, heats.fields))
    return (
        f"a race of {sizes} plans takes about {heats.total_s:.1f} s, of which at most {heats.cost_s:.1f} s are lost "
        f"({cost}); the best one's progress is kept: {names}."
    )


def _choice(ranking: Ranking, in_the_way: Sequence[str]) -> Choice:
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
