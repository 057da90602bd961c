"""Where the time of `bench goodput` goes that made no progress: after each fault, by cause.

A step of the job that took longer than usual is put down to what happened in it. Until somebody noticed that a member
is lost it is *detection*, then *renewal* until members are in the next world, then *repeating* what was interrupted. A
step after which there are more members is a *join*, and so is the first step with an exchange after it, for which a
newcomer may be waited for. Whatever else took longer is *slower*, and less than nothing where it was faster.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StepMade:
    """One worker's step, as it told it.

    Attributes:
        at_s: when it was over.
        rank: of the host.
        step: its number.
        lost: rounds dropped so far, as this worker knows.
        members: how many took part.
        rounds: that this worker has taken part in.
    """

    at_s: float
    rank: int
    step: int
    lost: int
    members: int
    rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class SeenRun:
    """All that was seen of a run, by one clock.

    Attributes:
        steps: of all workers, in order of time.
        struck: faults: when, what, and on whom.
        noticed: when a worker noticed that another was lost.
        entered: when a worker was in another world.
    """

    steps: list[StepMade] = field(default_factory=list)
    struck: list[tuple[float, str, int]] = field(default_factory=list)
    noticed: list[float] = field(default_factory=list)
    entered: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Usual:
    """What a step takes where nothing happens.

    Attributes:
        alone_s: without an exchange; the mean.
        exchanging_s: with one.
    """

    alone_s: float
    exchanging_s: float


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Seconds without progress, from one fault to the next.

    Attributes:
        fault: its kind; "none" for the time before the first.
        seconds: how long this was.
        detection_s: until somebody noticed.
        renewal_s: from then on, until members were in the next world.
        repeating_s: from then on, until the job made a step.
        joining_s: for those that came.
        slower_s: of all other steps; less than 0 where they were faster.
    """

    fault: str
    seconds: float
    detection_s: float = 0.0
    renewal_s: float = 0.0
    repeating_s: float = 0.0
    joining_s: float = 0.0
    slower_s: float = 0.0

    @property
    def lost_s(self) -> float:
        """All together."""
        return self.detection_s + self.renewal_s + self.repeating_s + self.joining_s + self.slower_s


@dataclass(frozen=True)
class _Taken:
    """A step of the job: from when to when, whether it exchanged anything, and whether it was for a newcomer."""

    began_s: float
    made: StepMade
    exchanges: bool
    grew: bool
    joins: bool

    @property
    def seconds(self) -> float:
        return self.made.at_s - self.began_s


def newest(steps: Sequence[StepMade]) -> Iterator[StepMade]:
    """Yields each step of the job when the first worker has made it."""
    furthest = 0
    for step in steps:
        if step.step > furthest:
            furthest = step.step
            yield step


def lost_at(steps: Sequence[StepMade]) -> set[int]:
    """Returns the numbers of steps that were made with nothing, for their round was dropped."""
    lost: set[int] = set()
    known: dict[int, int] = {}
    for step in steps:
        before = known.get(step.rank, step.lost)
        if step.lost > before:
            lost.add(step.step)
        known[step.rank] = step.lost
    return lost


def usual_of(steps: Sequence[StepMade]) -> Usual:
    """Returns what steps took in a run without faults."""
    alone, exchanging = [0.0], [0.0]
    for taken in _taken(steps):
        (exchanging if taken.exchanges else alone).append(taken.seconds)
    return Usual(alone_s=_mean(alone[1:]), exchanging_s=_mean(exchanging[1:]))


def losses(heard: SeenRun, usual: Usual) -> tuple[Losses, ...]:
    """Returns where time went, before the first fault and after each.

    Args:
        heard: of a run with faults.
        usual: of one without.
    """
    dropped = lost_at(heard.steps)
    bounds = [heard.steps[0].at_s, *(at_s for at_s, _, _ in heard.struck), heard.steps[-1].at_s]
    found = [dict[str, float]() for _ in bounds[1:]]
    for taken in _taken(heard.steps):
        at_s = taken.made.at_s
        mine = found[sum(bound < at_s for bound in bounds[1:-1])]
        noticed = min((t for t in heard.noticed if taken.began_s < t <= at_s), default=None)
        entered = max((t for t in heard.entered if taken.began_s < t <= at_s), default=None)
        # A round that lost a member and waits, while training goes on, is still to be made.
        exchanges = taken.exchanges and (noticed is None or entered is not None)
        normal_s = usual.exchanging_s if exchanges else usual.alone_s
        excess_s = taken.seconds - (0.0 if taken.made.step in dropped else normal_s)
        if taken.joins:
            parts = {"joining_s": excess_s}
        elif noticed is not None:
            detection_s = min(max(0.0, noticed - taken.began_s - normal_s), max(0.0, excess_s))
            renewal_s = max(0.0, entered - noticed) if entered is not None else 0.0
            parts = {"detection_s": detection_s, "renewal_s": renewal_s}
            parts["repeating_s"] = excess_s - detection_s - renewal_s
        else:
            parts = {"slower_s" if entered is None else "renewal_s": excess_s}
        for name, seconds in parts.items():
            mine[name] = mine.get(name, 0.0) + seconds
    kinds = ["none", *(kind for _, kind, _ in heard.struck)]
    spans = [stop - start for start, stop in itertools.pairwise(bounds)]
    return tuple(
        Losses(fault=kind, seconds=seconds, **parts)
        for kind, seconds, parts in zip(kinds, spans, found, strict=True)
    )


def joins(heard: SeenRun, usual: Usual) -> tuple[float, ...]:
    """Returns, for each time that members became more, what it cost the others, in seconds."""
    found: list[float] = []
    for taken in _taken(heard.steps):
        excess_s = taken.seconds - (usual.exchanging_s if taken.exchanges else usual.alone_s)
        if taken.grew:
            found.append(excess_s)
        elif taken.joins:
            found[-1] += excess_s
    return tuple(found)


def _taken(steps: Sequence[StepMade]) -> Iterator[_Taken]:
    """Yields the job's steps after the first."""
    rounds: dict[int, int] = {}
    exchanged: dict[int, bool] = {}
    for step in steps:  # by rank: each counts its own rounds, from 0 when it is started anew
        known = rounds.get(step.rank, 0)
        exchanged[id(step)] = step.rounds != known and step.rounds > 0
        rounds[step.rank] = step.rounds
    is_awaited = False
    for before, step in itertools.pairwise(newest(steps)):
        exchanges, grew = exchanged[id(step)], step.members > before.members
        yield _Taken(before.at_s, step, exchanges, grew, joins=grew or (is_awaited and exchanges))
        is_awaited = grew or (is_awaited and not exchanges)


def _mean(seconds: Sequence[float]) -> float:
    return statistics.fmean(seconds) if seconds else 0.0
