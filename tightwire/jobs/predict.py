"""Runs jobs together in virtual time, step after step, under one policy."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tightwire.jobs.interleave import Shifts, interleave
from tightwire.jobs.job import Job
from tightwire.jobs.policies import JobExchange, Policy

STEPS = 60
# Before that, jobs find their rhythm.
SETTLED = 20
TAIL = 0.95
DONE = 1e-9


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """What one job experiences.

    Attributes:
        name: the job's.
        step_s: mean of its settled steps.
        tail_s: their 95th percentile.
        alone_s: a step when nobody else is there.
        shift_s: by which it was shifted; None where the policy shifts nobody.
        period_s: that its turns repeat after, where it was shifted.
        priority: its place in the policy's order, 0 the first; None where there is none that lasts.
        steps: (start, end of compute, start and end of the exchange) of its first steps, for a picture.
    """

    name: str
    step_s: float
    tail_s: float
    alone_s: float
    shift_s: float | None = None
    period_s: float | None = None
    priority: int | None = None
    steps: tuple[tuple[float, float, float, float], ...] = field(default=(), repr=False)

    @property
    def slowdown(self) -> float:
        """Its step over a step alone."""
        return self.step_s / self.alone_s

    def summary(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "name": self.name,
            "step_s": self.step_s,
            "alone_s": self.alone_s,
            "slowdown": self.slowdown,
            "tail_s": self.tail_s,
            "shift_s": self.shift_s,
            "priority": self.priority,
        }


@dataclass(frozen=True, kw_only=True)
class PolicyOutcome:
    """What all jobs experience under one policy."""

    policy: str
    jobs: tuple[JobOutcome, ...]
    why: str = ""

    @property
    def mean_slowdown(self) -> float:
        """Over jobs."""
        return statistics.fmean(job.slowdown for job in self.jobs)

    @property
    def worst_slowdown(self) -> float:
        """Of the job that suffers most."""
        return max(job.slowdown for job in self.jobs)

    def summary(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "policy": self.policy,
            "jobs": [job.summary() for job in self.jobs],
            "mean_slowdown": self.mean_slowdown,
            "worst_slowdown": self.worst_slowdown,
            "why": self.why,
        }


def predict_jobs(
    jobs: Sequence[Job], policy: Policy, steps: int = STEPS, settled: int | None = None
) -> PolicyOutcome:
    """Predicts jobs together under a policy.

    Args:
        jobs: on one cluster.
        policy: how links are shared.
        steps: of the slowest job.
        settled: steps that are left out of the means; by default the first third, 20 at most.
    """
    shifts = interleave(jobs) if policy.interleaves else None
    records = run(jobs, policy, shifts, steps)
    priorities = _priorities(jobs, policy)
    outcomes = []
    for job in jobs:
        own = records[job.name]
        first = min(SETTLED, len(own) // 3) if settled is None else settled
        begins_s = [record[0] for record in own[first:]]
        times = [after - before for before, after in itertools.pairwise(begins_s)] or [job.alone_s]
        outcomes.append(
            JobOutcome(
                name=job.name,
                step_s=statistics.fmean(times),
                tail_s=sorted(times)[min(len(times) - 1, int(TAIL * len(times)))],
                alone_s=job.alone_s,
                shift_s=shifts.shift_s[job.name] if shifts else None,
                period_s=shifts.period_s[job.name] if shifts else None,
                priority=priorities.get(job.name),
                steps=tuple(own[:8]),
            )
        )
    return PolicyOutcome(policy=policy.name, jobs=tuple(outcomes), why=_why(policy, shifts))


def _why(policy: Policy, shifts: Shifts | None) -> str:
    if shifts is None:
        return policy.title + "."
    told = ", ".join(f"{name} by {shift_s:.3g} s" for name, shift_s in shifts.shift_s.items())
    if shifts.fits:
        return f"Shifted so that no exchanges meet: {told}."
    return f"No shifts keep all exchanges apart; these meet least, and where they meet, they share fairly: {told}."


def _priorities(jobs: Sequence[Job], policy: Policy) -> dict[str, int]:
    """Returns the order of jobs where it does not change over time."""
    if policy.key is None or policy.name != "intensity":
        return {}
    order = sorted(jobs, key=lambda job: -job.intensity)
    return {job.name: place for place, job in enumerate(order)}


# Start of the step, end of compute, start of the exchange, its end.
Record = tuple[float, float, float, float]


@dataclass
class _State:
    """Where a job is in its step."""

    job: Job
    begins_s: float
    exchange: JobExchange | None = None
    moved_s: float | None = None
    record: list[Record] = field(default_factory=list)

    @property
    def ready_s(self) -> float:
        return self.begins_s + self.job.ready_s

    @property
    def computed_s(self) -> float:
        return self.begins_s + self.job.compute_s

    def next_s(self, now_s: float) -> float:
        """Returns the next time at which something happens without the network."""
        if self.exchange is None and self.moved_s is None:
            return self.ready_s
        if self.moved_s is not None and self.computed_s > now_s:
            return self.computed_s
        return float("inf")


def run(jobs: Sequence[Job], policy: Policy, shifts: Shifts | None, steps: int) -> dict[str, list[Record]]:
    """Runs until every job has made so many steps; returns each job's steps."""
    shift_s = shifts.shift_s if shifts else {}
    states = [_State(job, job.start_s + shift_s.get(job.name, 0.0)) for job in jobs]
    now_s = 0.0
    while any(len(state.record) < steps for state in states):
        _advance(states, now_s)
        active = [state.exchange for state in states if state.exchange is not None]
        speeds = policy.speeds(active)
        wait_s = [state.next_s(now_s) - now_s for state in states]
        moves_s = [x.left * x.job.wire_s / speeds[x.job.name] for x in active if speeds[x.job.name] > DONE]
        step_s = max(0.0, min([*wait_s, *moves_s]))
        now_s += step_s
        for x in active:
            x.left -= speeds[x.job.name] * step_s / x.job.wire_s
    return {state.job.name: state.record for state in states}


def _advance(states: Sequence[_State], now_s: float) -> None:
    """Lets everything happen that is due: exchanges begin and end, steps end and begin."""
    for state in states:
        if state.exchange is not None and state.exchange.left <= DONE:
            state.moved_s, state.exchange = now_s, None
        if state.moved_s is not None and state.computed_s <= now_s + DONE:
            state.record.append((state.begins_s, state.computed_s, state.ready_s, state.moved_s))
            state.begins_s, state.moved_s = now_s, None
        if state.exchange is None and state.moved_s is None and state.ready_s <= now_s + DONE:
            if state.job.wire_s:
                state.exchange = JobExchange(state.job, now_s)
            else:
                state.moved_s = now_s
