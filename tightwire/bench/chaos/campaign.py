"""The campaign: which faults, in which order, drawn from a seed; and the judgement of each end."""

from __future__ import annotations

import itertools
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tightwire.bench.chaos.arena import MORE_S, Ended, Ending, run_trial
from tightwire.bench.chaos.faults import (
    ELASTIC,
    FAMILIES,
    FAULTS,
    LOCAL_FAULTS,
    ChaosFault,
    Where,
    ends_with_one,
    phases_of,
)
from tightwire.bench.chaos.lanes import side_by_side
from tightwire.bench.chaos.launched import run_under_torchrun
from tightwire.bench.chaos.network import run_on_hosts
from tightwire.bench.chaos.worker import DEADLINE_S, LOOPS, ChaosTrial

SERVED: Final = "asp/ps:servers=1"  # for what strikes servers, where no plan that was asked for has one
# Exit codes of a worker that its own libraries abort, as they are told by a parent and by a launcher in between.
CRASHED: Final = tuple(
    code for number in (signal.SIGABRT, signal.SIGSEGV) for code in (-number, 128 + number)
)
ENDING: Final = ("kill", "kill-host", "raise", "exit", "full-disk")  # faults that end the victim's process
PLACES: Final[dict[Where, Callable[[ChaosTrial], Ending]]] = {
    "loopback": run_trial,
    "hosts": run_on_hosts,
    "torchrun": run_under_torchrun,
}


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What is tried.

    Attributes:
        plans: each of a family.
        elastic: plans of elastic jobs.
        faults: names of the kinds that are drawn from.
        count: how many faults.
        seconds: after which no other begins; None: no limit.
        seed: of which faults, where and when.
        workers: in each trial.
        deadline_s: of the transport.
        at_once: trials that run side by side.
        large: the share of trials with a model so large that faults fall into the middle of messages.
    """

    plans: tuple[str, ...] = tuple(FAMILIES)
    elastic: tuple[str, ...] = ()
    faults: tuple[str, ...] = LOCAL_FAULTS
    count: int = 100
    seconds: float | None = None
    seed: int = 0
    workers: int = 3
    deadline_s: float = DEADLINE_S
    at_once: int = 1
    large: float = 0.25


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """One fault and what was wrong with its end.

    Attributes:
        trial: what was tried.
        hangs: workers that did not end in time.
        wrong_names: sentences that named nobody, or the wrong one.
        divergences: replicas that were promised to be equal and were not.
        leftovers: what was left behind.
        goodput: steps made by those that the fault did not strike, as a share of what they were to make.
        seconds: that it took.
        end_s: when all had ended, from the start of the campaign.
        struck_s: when the victim was struck, from the start of the campaign; None: from its own start, or never.
        stepped_s: when those that were not struck made their steps, from the start of the campaign.
        logs: by rank, what workers wrote last, where anything was wrong.
    """

    trial: ChaosTrial
    hangs: tuple[str, ...] = ()
    wrong_names: tuple[str, ...] = ()
    divergences: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    goodput: float = 0.0
    seconds: float = 0.0
    end_s: float = 0.0
    struck_s: float | None = None
    stepped_s: tuple[float, ...] = ()
    logs: tuple[tuple[str, ...], ...] = ()

    @property
    def found(self) -> tuple[str, ...]:
        """All that was wrong."""
        return (*self.hangs, *self.wrong_names, *self.divergences, *self.leftovers)


@dataclass(frozen=True)
class ChaosRow:
    """How the runs of one plan, or those with one fault, ended.

    Attributes:
        name: the plan or the fault.
        faults: how many.
        goodput: mean over them.
        found: how many ended wrong.
    """

    name: str
    faults: int
    goodput: float
    found: int


@dataclass
class _Judge:
    """Collects what is wrong with one end."""

    trial: ChaosTrial
    ending: Ending
    hangs: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    parted: list[str] = field(default_factory=list)

    @property
    def has_found(self) -> bool:
        """Whether anything was wrong."""
        return bool(self.hangs or self.wrong or self.parted or self.ending.leftovers)

    def judge(self) -> None:
        trial, fault = self.trial, FAULTS[self.trial.fault]
        for rank, worker in enumerate(self.ending.workers):
            is_victim = rank == trial.victim
            if worker.code is None and (fault.victim_ends or not is_victim):
                self.hangs.append(f"rank {rank} did not end; it was in {worker.error}")
            elif not is_victim:
                self._judge_survivor(rank, worker, self._must())
            elif blamed := worker.end.get("ranks"):  # by the victim, who may blame nobody
                self.wrong.append(f"rank {rank}, the victim, blames {blamed}: {worker.end.get('error')}")
            elif trial.fault == "full-disk" and worker.end.get("end") != "FileError":
                self.wrong.append(f"rank {rank} did not say that the disk is full: {worker.end}")
        self._compare()

    def _must(self) -> str:
        """Returns how survivors must end: finished, named, or either."""
        fault = FAULTS[self.trial.fault]
        expected = (fault.elastic if self.trial.elastic else None) or fault.expected
        if self.trial.fault.endswith("-joining") and self.ending.has_attached and not self.trial.elastic:
            return "either"  # it had joined sooner than it was struck, and some plans go on without it
        if expected == "goes-on":
            return "finished"
        if expected == "named":
            return "named"
        if expected == "loses":
            return "named" if self._ends_with_the_victim() else "finished"
        return "either"

    def _ends_with_the_victim(self) -> bool:
        trial = self.trial
        if trial.elastic:
            return False
        serves = "servers=1" in trial.plan and trial.victim == trial.workers - 1
        return serves or ends_with_one(trial.plan, trial.at_step)

    def _judge_survivor(self, rank: int, worker: Ended, must: str) -> None:
        end, struck_s = worker.end, self.ending.struck_s
        if worker.code in CRASHED:
            self.wrong.append(f"rank {rank} was aborted (exit code {worker.code}): {worker.error}")
        took_s = 0.0 if struck_s is None else end.get("ended_s", struck_s) - struck_s
        if end.get("end") != "finished" and took_s > self.trial.deadline_s + MORE_S:
            self.hangs.append(
                f"rank {rank} ended only {took_s:.0f} s after rank {self.trial.victim} was struck"
            )
        if end.get("end") == "finished":
            if must == "named":
                self.wrong.append(f"rank {rank} finished and said nothing of rank {self.trial.victim}")
            return
        said = f"{end.get('end')}: {end.get('error', worker.error)}"
        if must == "finished":
            self.wrong.append(f"rank {rank} was to finish: {said}")
            return
        blamed, victim = set(end.get("ranks", ())), self.trial.victim
        is_named = blamed == {victim} if blamed else f"rank {victim} " in said
        if not is_named or end.get("end") not in ("PeerError", "MismatchError", "AttachError"):
            self.wrong.append(f"rank {rank} was to name rank {self.trial.victim}: {said}")

    def _compare(self) -> None:
        digests = {
            rank: str(worker.end["digest"])
            for rank, worker in enumerate(self.ending.workers)
            if worker.end.get("end") == "finished" and worker.end.get("digest")
        }
        if self.trial.fault in (
            "thaw",
            "freeze",
            "cut",
            "half-open",
        ):  # who was given up ends with what it has
            digests.pop(self.trial.victim, None)
        if self.trial.elastic and self.ending.workers[self.trial.victim].end.get("members") == 1:
            digests.pop(self.trial.victim, None)  # it came back when the others had ended
        if "servers=1" in self.trial.plan:
            digests.pop(self.trial.workers - 1, None)
        if len(set(digests.values())) > 1:
            members = {rank: self.ending.workers[rank].end.get("members") for rank in digests}
            self.parted.append(f"replicas ended unlike: {digests}; each among so many: {members}")
        for rank, worker in enumerate(self.ending.workers):
            if not worker.end.get("finite", True):
                self.parted.append(f"rank {rank} ended with parameters that are not finite")


def draw(campaign: Campaign) -> Iterator[ChaosTrial]:
    """Yields the trials, the same for the same campaign: every plan and every fault as often as any other."""
    dice = random.Random(campaign.seed)
    jobs = [(plan, False) for plan in campaign.plans] + [(plan, True) for plan in campaign.elastic]
    of_servers = [(plan, False) for plan in campaign.plans if "servers=1" in plan] or [(SERVED, False)]
    of_elastic = [(plan, True) for plan in campaign.elastic or ELASTIC]
    undrawn, faults = list[tuple[str, bool]](), list[str]()
    for _ in range(campaign.count):
        undrawn = undrawn or dice.sample(jobs, len(jobs))
        faults = faults or dice.sample(campaign.faults, len(campaign.faults))
        job, fault = undrawn.pop(), FAULTS[faults.pop()]
        able = {"server": of_servers, "elastic": of_elastic}.get(fault.strikes, jobs)
        if fault.where != "loopback":
            able = [(plan, False) for plan in campaign.plans]
        plan, elastic = job if job in able else dice.choice(able)
        steps = 24
        yield ChaosTrial(
            plan=plan,
            fault=fault.name,
            victim=_victim(dice, plan, fault, campaign.workers),
            at_step=-1 if fault.at_start else _when(dice, plan, steps),
            moment=dice.random(),
            workers=campaign.workers,
            steps=steps,
            step_s=0.02,
            deadline_s=campaign.deadline_s,
            late_s=15 * campaign.deadline_s,
            elastic=elastic,
            # Such a collective waits for the dead alone: torch.distributed does not see that somebody is stopped.
            logs=not elastic
            and plan in FAMILIES
            and FAMILIES[plan] == "ends"
            and fault.name in ENDING
            and dice.random() < 0.5,
            large=fault.can_be_large and dice.random() < campaign.large,
            # Who schedules another rate goes on having it, and is named; else a newcomer takes that of the others.
            loop="plain" if fault.at_start else dice.choice(LOOPS),
        )


def _when(dice: random.Random, plan: str, steps: int) -> int:
    """Returns how many steps the victim has made; of a plan that changes, half strike where it does."""
    # A choice begins with the first step that all make together.
    changes = (1, 2) if plan == "auto" else tuple(end - 1 for end in phases_of(plan).ends)
    at_any_time = dice.randrange(4, steps - 4)
    return dice.choice(changes) if changes and dice.random() < 0.5 else at_any_time


def _victim(dice: random.Random, plan: str, fault: ChaosFault, workers: int) -> int:
    """Returns the rank that is struck: a server, the last rank, only by what strikes servers."""
    rank = dice.randrange(workers - ("servers=1" in plan))
    return {"host": 0, "server": workers - 1}.get(fault.strikes, rank)


def judge(trial: ChaosTrial, ending: Ending, seconds: float, began_s: float = 0.0) -> TrialOutcome:
    """Returns what was wrong with how a trial ended.

    Args:
        trial: what was tried.
        ending: how it ended.
        seconds: that it took.
        began_s: when the campaign began, by the monotonic clock.
    """
    judging = _Judge(trial, ending)
    judging.judge()
    others = [w for rank, w in enumerate(ending.workers) if rank != trial.victim]
    trained = [w for w in others if w.end.get("steps")] or others
    return TrialOutcome(
        trial=trial,
        hangs=tuple(judging.hangs),
        wrong_names=tuple(judging.wrong),
        divergences=tuple(judging.parted),
        leftovers=ending.leftovers,
        goodput=statistics.fmean(w.end.get("steps", 0) / trial.steps for w in trained),
        seconds=seconds,
        end_s=time.monotonic() - began_s,
        struck_s=None if ending.struck_s is None else ending.struck_s - began_s,
        stepped_s=tuple(sorted(at_s - began_s for w in others for at_s in w.end.get("stepped_s", ()))),
        logs=tuple(worker.log for worker in ending.workers) if judging.has_found else (),
    )


def run_campaign(campaign: Campaign, on_outcome: Callable[[TrialOutcome], None]) -> list[TrialOutcome]:
    """Runs the trials and returns how they ended. From the main thread.

    Args:
        campaign: what is tried.
        on_outcome: told of each end.
    """
    # Before the forks, once for all: each would take seconds.
    import numba  # noqa: F401
    import torch._dynamo
    import torch.distributed  # noqa: F401
    from numba.core.registry import cpu_target

    import tightwire._attach
    import tightwire.planner
    import tightwire.transport.join  # noqa: F401

    cpu_target.target_context.refresh()  # else each worker would do so with its first kernel
    cpu_target.typing_context.refresh()
    began_s = time.monotonic()
    trials = itertools.takewhile(
        lambda _: campaign.seconds is None or time.monotonic() - began_s <= campaign.seconds, draw(campaign)
    )

    def run(trial: ChaosTrial) -> TrialOutcome:
        start_s = time.monotonic()
        ending = PLACES[FAULTS[trial.fault].where](trial)
        return judge(trial, ending, time.monotonic() - start_s, began_s)

    outcomes: list[TrialOutcome] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was begun is cleared away
    for outcome in side_by_side(trials, run, campaign.at_once):
        outcomes.append(outcome)
        on_outcome(outcome)
    return outcomes


def by_plan(outcomes: Sequence[TrialOutcome]) -> list[ChaosRow]:
    """Returns one row per plan."""
    return _rows(outcomes, lambda trial: trial.label)


def by_fault(outcomes: Sequence[TrialOutcome]) -> list[ChaosRow]:
    """Returns one row per kind of fault."""
    return _rows(outcomes, lambda trial: trial.fault)


def _rows(outcomes: Sequence[TrialOutcome], name_of: Callable[[ChaosTrial], str]) -> list[ChaosRow]:
    rows = []
    for name in sorted({name_of(outcome.trial) for outcome in outcomes}):
        mine = [outcome for outcome in outcomes if name_of(outcome.trial) == name]
        wrong = sum(bool(outcome.found) for outcome in mine)
        rows.append(ChaosRow(name, len(mine), statistics.fmean(o.goodput for o in mine), wrong))
    return rows
