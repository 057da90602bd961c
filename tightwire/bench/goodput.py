"""How much of its fault-free throughput an elastic job keeps while workers are killed, stopped and cut off.

Workers live on hosts of the lab, and a worker that is killed is started anew from a warm spare, which has imported what
it needs in time that nobody wanted: with a processor of its own its imports would take nothing from the others. Compute
is emulated by timed waits, so that the cores of one machine stand for those of many. Each worker prints every step;
what counts is read from that:

- *progress*: steps that the job made, less those that were dropped because a round lost a member;
- *samples*: over these steps, the workers that took part in each.

Workers are `bench/goodput_worker.py`; those of a plan that begins with `torchft:` are `bench/goodput_torchft.py`, to
compare with.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal

from tightwire.bench.goodput_losses import (
    Losses,
    SeenRun,
    StepMade,
    Usual,
    joins,
    losses,
    lost_at,
    newest,
    usual_of,
)
from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Topology
from tightwire.lab.spare import MODULES
from tightwire.plan import Plan

Kind = Literal["kill", "freeze", "cut"]
KINDS: Final[tuple[Kind, ...]] = ("kill", "freeze", "cut")
MARK: Final = "STEP "
SPENT: Final = "SPENT "
LOST: Final = "LOST"
ENTERED: Final = "ENTERED"
DONE: Final = "DONE"
TORCHFT: Final = "torchft:"
TORCHFT_MODULES: Final = (*MODULES, "torchft.local_sgd", "torchft.manager", "torchft.process_group")
# After the first worker's end, one that was just started anew and is in no world yet is waited for so long.
PATIENCE_S: Final = 10.0
# Until workers have imported all and met, about, where eight share two cores.
START_S: Final = 25.0
CALM_S: Final = 60.0  # a run without faults lasts no longer


@dataclass(frozen=True, kw_only=True)
class GoodputBench:
    """What is measured.

    Attributes:
        plan: of the job; `torchft:diloco:30` is torchft's own.
        workers: how many.
        rate_bytes_per_s: of each worker's line.
        seconds: of a run, from the first step on.
        every_s: from the beginning of a fault to that of the next; 0: none.
        kinds: of faults, drawn from.
        outage_s: after so long a stopped worker goes on, and a cut line is mended; at most half of `every_s`.
        compute_s: of a step.
        parameters: of the model.
        deadline_s: for how long a worker may be silent.
        dead_ms: the same for the lighthouse, which hears it ten times a second.
        seed: draws the faults.
        elastic: whether workers are elastic; else no fault is survived.
    """

    plan: str
    workers: int = 8
    rate_bytes_per_s: float = 25e6
    seconds: float = 60.0
    every_s: float = 30.0
    kinds: tuple[Kind, ...] = KINDS
    outage_s: float = 10.0
    compute_s: float = 0.1
    parameters: int = 500_000
    deadline_s: float = 4.0
    dead_ms: int = 500
    seed: int = 0
    elastic: bool = True

    @property
    def is_torchft(self) -> bool:
        """Whether torchft's own method runs."""
        return self.plan.startswith(TORCHFT)

    @property
    def steps_per_round(self) -> int:
        """Steps from one exchange to the next."""
        return Plan.parse(self.plan.removeprefix(TORCHFT)).sync.steps_per_round


@dataclass(frozen=True, kw_only=True)
class GoodputRow:
    """What one run came to.

    Attributes:
        plan: of the job.
        faults: seconds from the first step on, kind, and rank.
        seconds: from the first step to the last.
        steps: progress, as above.
        samples: as above.
        lost_rounds: rounds that were dropped.
        gaps_s: after each fault, the longest time without progress until the next one.
        idle_s: after each fault that members noticed, the time without progress from then on.
        joins_s: for each time that members became more, by how much that step, and the next one in which they exchange
            anything, took longer than others of their kind.
        waited_s: the longest time between two steps of the job where there was no fault.
        processor_s: processor time per step of a worker, the median over workers; None: not told.
        wall_s: of the whole run, with starting and ending.
        made: each step of progress: seconds from the first step on, and how many took part.
        usual: what steps took, as they were; of a run without faults what they usually take.
        losses: where time went, before the first fault and after each.
    """

    plan: str
    faults: tuple[tuple[float, str, int], ...]
    seconds: float
    steps: int
    samples: int
    lost_rounds: int
    gaps_s: tuple[float, ...] = field(default=())
    idle_s: tuple[float, ...] = field(default=())
    joins_s: tuple[float, ...] = field(default=())
    waited_s: float = 0.0
    processor_s: float | None = None
    wall_s: float = 0.0
    made: tuple[tuple[float, int], ...] = field(default=())
    usual: Usual | None = None
    losses: tuple[Losses, ...] = field(default=())

    @property
    def steps_per_s(self) -> float:
        """Progress per second."""
        return self.steps / self.seconds if self.seconds else 0.0

    @property
    def samples_per_s(self) -> float:
        """Workers' steps per second."""
        return self.samples / self.seconds if self.seconds else 0.0


def takes_s(plans: Sequence[str], seconds: float) -> float:
    """Returns how long the bench of some plans takes, about.

    Args:
        plans: as in `GoodputBench`.
        seconds: of faults, for each.
    """
    calm = sum(1 if plan.startswith(TORCHFT) else 2 for plan in plans)
    runs = calm + len(plans)
    return calm * min(CALM_S, seconds) + len(plans) * seconds + runs * START_S


def run(bench: GoodputBench, usual: Usual | None = None) -> GoodputRow:
    """Runs a job for some time among faults.

    Args:
        bench: what is measured.
        usual: of a run without faults, to compare with; None: this is one.

    Raises:
        LabError: no worker made a step, or one failed by itself.
    """
    start_s = time.monotonic()
    topology = Topology(workers=bench.workers, rate_bytes_per_s=bench.rate_bytes_per_s)
    with Lab(topology, batch_scheduling=True) as lab:
        ear = _Ear(lab)
        driver = threading.Thread(target=_strike, args=(bench, lab, ear), daemon=True)
        driver.start()
        worker = "goodput_torchft" if bench.is_torchft else "goodput_worker"
        command = [
            sys.executable,
            *f"-W ignore -m tightwire.bench.{worker}".split(),
            json.dumps(asdict(bench)),
        ]
        warm = TORCHFT_MODULES if bench.is_torchft else MODULES
        try:
            result = lab.run(command, on_line=ear, elastic=bench.elastic, warm=warm, dead_ms=bench.dead_ms)
        finally:
            ear.ended.set()
            ear.began.set()
            driver.join()
    heard = ear.heard
    if not heard.steps or not ear.done or not (result.ok or bench.elastic):
        raise LabError(f"{bench.plan}: {result.describe()} {len(heard.steps)} steps were made.")
    row = account(bench.plan, heard, usual)
    processor_s = statistics.median(ear.spent) if ear.spent else None
    return replace(row, processor_s=processor_s, wall_s=time.monotonic() - start_s)


class _Ear:
    """Hears what workers print, and ends the run once the first of them is done.

    Attributes:
        heard: of steps and of members.
        spent: processor time per step, of each worker that ended.
        done: the workers that ended.
        began: set with the first step.
        ended: set with the first end.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.heard = SeenRun()
        self.spent: list[float] = []
        self.done: set[int] = set()
        self.began, self.ended = threading.Event(), threading.Event()

    def __call__(self, line: OutputLine) -> None:
        """Hears a line."""
        now_s, text = time.monotonic(), line.text
        if line.stream == "stderr":
            print(f"[{line.rank}] {text}", file=sys.stderr)
        elif text.startswith(MARK):
            step, lost, members, rounds = map(int, text.removeprefix(MARK).split())
            made = StepMade(at_s=now_s, rank=line.rank, step=step, lost=lost, members=members, rounds=rounds)
            self.heard.steps.append(made)
            self.began.set()
        elif text.startswith(SPENT):
            self.spent.append(float(text.removeprefix(SPENT)))
        elif text == LOST:
            self.heard.noticed.append(now_s)
        elif text == ENTERED:
            self.heard.entered.append(now_s)
        elif text == DONE:
            if not self.done:
                self.ended.set()
                threading.Timer(PATIENCE_S, self._end_the_rest).start()
            self.done.add(line.rank)

    def _end_the_rest(self) -> None:
        self._lab.restart_no_more()
        for rank in set(range(self._lab.topology.workers)) - self.done:
            with suppress(LabError):
                self._lab.kill(rank)


def account(plan: str, heard: SeenRun, usual: Usual | None = None) -> GoodputRow:
    """Returns what was achieved.

    Args:
        plan: of the job.
        heard: all that was seen.
        usual: what steps take without faults; None: as they took here.
    """
    steps, struck = heard.steps, heard.struck
    first_s, last_s = steps[0].at_s, steps[-1].at_s
    dropped = lost_at(steps)
    made = [step for step in newest(steps) if step.step not in dropped]
    times = [step.at_s for step in made]
    bounds = [at_s for at_s, _, _ in struck] + [last_s]
    gaps = tuple(
        _longest([start, *(t for t in times if start <= t <= end)])
        for start, end in itertools.pairwise(bounds)
    )
    took = usual_of(steps)
    parts = losses(heard, usual or took)
    return GoodputRow(
        plan=plan,
        faults=tuple((at_s - first_s, kind, rank) for at_s, kind, rank in struck),
        seconds=last_s - first_s,
        steps=len(made),
        samples=sum(step.members for step in made),
        lost_rounds=len(dropped),
        gaps_s=gaps,
        idle_s=tuple(_idle(times, heard.noticed, bounds)),
        joins_s=joins(heard, usual or took),
        waited_s=_longest([t for t in times if t <= bounds[0]]),
        usual=took,
        losses=parts,
        made=tuple((step.at_s - first_s, step.members) for step in made),
    )


def _idle(times: list[float], noticed: Sequence[float], bounds: list[float]) -> Iterator[float]:
    """Yields, for each fault that somebody noticed, the time from then until the job's next step."""
    for start, end in itertools.pairwise(bounds):
        first = min((t for t in noticed if start <= t < end), default=None)
        after = min((t for t in times if first is not None and t > first), default=None)
        if first is not None and after is not None:
            yield after - first


def _longest(times: list[float]) -> float:
    return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


def _strike(bench: GoodputBench, lab: Lab, ear: _Ear) -> None:
    """Breaks workers until the job has ended."""
    chance = random.Random(bench.seed)
    ear.began.wait()
    outage_s = min(bench.outage_s, bench.every_s / 2)
    next_s = time.monotonic() + bench.every_s
    while bench.every_s and not ear.ended.wait(max(0.0, next_s - time.monotonic())):
        next_s += bench.every_s
        kind = chance.choice(bench.kinds)
        # The lighthouse is on host 0, which may not be cut off.
        rank = chance.randrange(1 if kind == "cut" else 0, bench.workers)
        ear.heard.struck.append((time.monotonic(), kind, rank))
        begin, end = _acts(lab, kind)
        try:
            begin(rank)
            if end is not None:
                ear.ended.wait(outage_s)
                end(rank)
        except LabError:  # the job has just ended
            return


def _acts(lab: Lab, kind: Kind) -> tuple[Callable[[int], None], Callable[[int], None] | None]:
    return {"kill": (lab.kill, None), "freeze": (lab.freeze, lab.thaw), "cut": (lab.cut, lab.mend)}[kind]
