"""Interleaving in time: every job's traffic is a circle of one step, turned so that busy arcs do not meet.

On each link, the circles of the jobs that cross it are laid on one of a common length (the least multiple of their
periods, in ticks), and turned to where the sum of demands exceeds the link's rate least (CASSINI, arXiv:2308.00852,
sections 3 and 4). Jobs and the links that they share make the affinity graph; turning a job on one link turns it on
all of its links, so shifts are chosen for each connected part together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tightwire.jobs.job import Job

Floats = NDArray[np.float64]

# Of the longest job's step; CASSINI turns its circles by 5 degrees, which are 72.
TICKS = 144
# Ticks of a common circle at most; periods are rounded so that theirs is no longer.
MOST_TICKS = 20_000
ROUNDS = 4
# Jobs whose turns are all tried together; more are turned one by one.
MOST_TOGETHER = 2


@dataclass(frozen=True)
class Circles:
    """Jobs on one common circle."""

    jobs: tuple[Job, ...]

    @cached_property
    def tick_s(self) -> float:
        """Seconds of a tick."""
        return max(job.alone_s for job in self.jobs) / TICKS

    @cached_property
    def periods(self) -> tuple[int, ...]:
        """Ticks of every job's step, one at least."""
        periods = [max(1, round(job.alone_s / self.tick_s)) for job in self.jobs]
        longest = max(periods)
        if math.lcm(*periods) <= MOST_TICKS:
            return tuple(periods)
        # Periods that fit a whole number of times into the longest: shifts stay meaningful for that long.
        return tuple(max(1, round(longest / max(1, round(longest / period)))) for period in periods)

    @cached_property
    def length(self) -> int:
        """Ticks of the common circle."""
        return min(math.lcm(*self.periods), MOST_TICKS)

    def demand(self, number: int, shift: int) -> Floats:
        """Returns when a job is on its busiest link, on the common circle, turned by so many ticks: 0 to 1."""
        job, period = self.jobs[number], self.periods[number]
        begins = job.ready_s / self.tick_s
        ends = begins + job.wire_s / self.tick_s
        ticks = np.arange(period)
        # Covered share of each tick; an arc may go around.
        own = sum(np.clip(np.minimum(ticks + 1, ends - turn) - np.maximum(ticks, begins - turn), 0.0, 1.0)
                  for turn in (0, period, 2 * period))  # fmt: skip
        return np.roll(np.resize(np.asarray(own, dtype=float), self.length), shift)

    def excess(self, shifts: Sequence[int]) -> float:
        """Returns the demand beyond the links' rates, summed over links and ticks, in ticks of a busy link."""
        total = 0.0
        waves = [self.demand(number, shift) for number, shift in enumerate(shifts)]
        for link in self.shared:
            rate = self.jobs[0].rates[link]
            load: Floats = np.zeros(self.length)
            for number, job in enumerate(self.jobs):
                if link in job.bytes_by_link and job.wire_s:
                    load = load + waves[number] * (job.bytes_by_link[link] / job.wire_s / rate)
            total += float(np.maximum(load - 1 - 1e-9, 0.0).sum())
        return total

    @cached_property
    def shared(self) -> tuple[int, ...]:
        """Links that more than one job crosses."""
        crossed = [link for job in self.jobs for link in job.bytes_by_link]
        return tuple(sorted({link for link in crossed if crossed.count(link) > 1}))


@dataclass(frozen=True, kw_only=True)
class Shifts:
    """Shifts of jobs in time.

    Attributes:
        shift_s: by the job's name.
        period_s: that a job's turns repeat after, by its name: its step, to a tick of the common circle.
        fits: whether no exchange meets another any more; else they still share.
    """

    shift_s: dict[str, float]
    period_s: dict[str, float]
    fits: bool


def interleave(jobs: Sequence[Job]) -> Shifts:
    """Returns the shifts at which jobs meet least, for each connected part of the affinity graph."""
    shift_s = {job.name: 0.0 for job in jobs}
    period_s = {job.name: job.alone_s for job in jobs}
    fits = True
    for part in affinity_parts(jobs):
        circles = Circles(tuple(part))
        ticks = _turn(circles)
        fits = fits and circles.excess(ticks) < 0.02 * circles.length
        for job, tick, period in zip(part, ticks, circles.periods, strict=True):
            shift_s[job.name] = tick * circles.tick_s
            period_s[job.name] = period * circles.tick_s
    return Shifts(shift_s=shift_s, period_s=period_s, fits=fits)


def affinity_parts(jobs: Sequence[Job]) -> list[list[Job]]:
    """Returns the jobs that share links, directly or over others, part by part."""
    left, parts = list(jobs), []
    while left:
        part = [left.pop(0)]
        while found := [
            job for job in left if any(job.bytes_by_link.keys() & other.bytes_by_link for other in part)
        ]:
            part += found
            left = [job for job in left if job not in found]
        parts.append(part)
    return parts


def _turn(circles: Circles) -> list[int]:
    """Turns all circles of few jobs together, of many one by one, the longest exchange first, until none gains."""
    count = len(circles.jobs)
    if count == 1:
        return [0]
    if count <= MOST_TOGETHER:
        turns = map(list, itertools.product((0,), *(range(period) for period in circles.periods[1:])))
        return min(turns, key=circles.excess)
    order = sorted(range(count), key=lambda number: -circles.jobs[number].wire_s)
    shifts = [0] * count
    best = circles.excess(shifts)
    for _ in range(ROUNDS):
        before = best
        for number in order[1:]:

            def turned(tick: int, number: int = number) -> float:
                return circles.excess([*shifts[:number], tick, *shifts[number + 1 :]])

            tick = min(range(circles.periods[number]), key=turned)
            if (found := turned(tick)) < best - 1e-9:
                shifts[number], best = tick, found
        if best >= before - 1e-9 or best == 0:
            break
    return shifts
