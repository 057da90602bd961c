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

from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Topology
from tightwire.lab.spare import MODULES
from tightwire.plan import Plan

Kind = Literal["kill", "freeze", "cut"]
KINDS: Final[tuple[Kind, ...]] = ("kill", "freeze", "cut")
MARK: Final = "STEP "
SPENT: Final = "SPENT "
LOST: Final = "LOST"
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
class StepMade:
    """One worker's step, as it told it.

    Attributes:
        at_s: when it was over.
        rank: of the host.
        step: its number.
        lost: rounds dropped so far, as this worker knows.
        members: how many took part.
    """

    at_s: float
    rank: int
    step: int
    lost: int
    members: int


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
        joins_s: for each time that members became more, by how much that step took longer than others of its kind.
        waited_s: the longest time between two steps of the job where there was no fault.
        processor_s: processor time per step of a worker, the median over workers; None: not told.
        wall_s: of the whole run, with starting and ending.
        made: each step of progress: seconds from the first step on, and how many took part.
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


def run(bench: GoodputBench) -> GoodputRow:
    """Runs a job for some time among faults.

    Raises:
        LabError: no worker made a step, or one failed by itself.
    """
    seen: list[StepMade] = []
    noticed: list[float] = []
    spent: list[float] = []
    struck: list[tuple[float, str, int]] = []
    start_s = time.monotonic()
    ended = threading.Event()
    began = threading.Event()
    done: set[int] = set()

    def end_the_rest(lab: Lab) -> None:
        lab.restart_no_more()
        for rank in set(range(bench.workers)) - done:
            with suppress(LabError):
                lab.kill(rank)

    def on_line(line: OutputLine) -> None:
        if line.stream == "stdout" and line.text.startswith(MARK):
            step, lost, members = map(int, line.text.removeprefix(MARK).split())
            seen.append(
                StepMade(at_s=time.monotonic(), rank=line.rank, step=step, lost=lost, members=members)
            )
            began.set()
        elif line.stream == "stdout" and line.text == DONE:
            if not done:
                ended.set()
                threading.Timer(PATIENCE_S, end_the_rest, (lab,)).start()
            done.add(line.rank)
        elif line.stream == "stdout" and line.text.startswith(SPENT):
            spent.append(float(line.text.removeprefix(SPENT)))
        elif line.stream == "stdout" and line.text == LOST:
            noticed.append(time.monotonic())
        elif line.stream == "stderr":
            print(f"[{line.rank}] {line.text}", file=sys.stderr)

    topology = Topology(workers=bench.workers, rate_bytes_per_s=bench.rate_bytes_per_s)
    with Lab(topology, batch_scheduling=True) as lab:
        driver = threading.Thread(target=_strike, args=(bench, lab, struck, began, ended), daemon=True)
        driver.start()
        worker = "goodput_torchft" if bench.is_torchft else "goodput_worker"
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            f"tightwire.bench.{worker}",
            json.dumps(asdict(bench)),
        ]
        try:
            warm = TORCHFT_MODULES if bench.is_torchft else MODULES
            result = lab.run(command, on_line=on_line, elastic=bench.elastic, warm=warm)
        finally:
            ended.set()
            began.set()
            driver.join()
    if not seen or not done or not (result.ok or bench.elastic):
        raise LabError(f"{bench.plan}: {result.describe()} {len(seen)} steps were made.")
    row = account(bench.plan, seen, struck, noticed, bench.steps_per_round)
    processor_s = statistics.median(spent) if spent else None
    return replace(row, processor_s=processor_s, wall_s=time.monotonic() - start_s)


def account(
    plan: str,
    seen: list[StepMade],
    struck: list[tuple[float, str, int]],
    noticed: Sequence[float] = (),
    steps_per_round: int = 1,
) -> GoodputRow:
    """Returns what was achieved.

    Args:
        plan: of the job.
        seen: all workers' steps, in order of time.
        struck: faults: when, by the same clock, what, and on whom.
        noticed: when a worker noticed that another was lost, by the same clock.
        steps_per_round: of the plan.
    """
    first_s, last_s = seen[0].at_s, seen[-1].at_s
    newest = list(_newest(seen))
    lost_at = _lost_at(seen)
    made = [step for step in newest if step.step not in lost_at]
    times = [step.at_s for step in made]
    bounds = [at_s for at_s, _, _ in struck] + [last_s]
    gaps = tuple(
        _longest([start, *(t for t in times if start <= t <= end)])
        for start, end in itertools.pairwise(bounds)
    )
    until_s = bounds[0]
    return GoodputRow(
        plan=plan,
        faults=tuple((at_s - first_s, kind, rank) for at_s, kind, rank in struck),
        seconds=last_s - first_s,
        steps=len(made),
        samples=sum(step.members for step in made),
        lost_rounds=len(lost_at),
        gaps_s=gaps,
        idle_s=tuple(_idle(times, noticed, bounds)),
        joins_s=tuple(_joins(made, steps_per_round)),
        waited_s=_longest([t for t in times if t <= until_s]),
        made=tuple((step.at_s - first_s, step.members) for step in made),
    )


def _newest(seen: list[StepMade]) -> Iterator[StepMade]:
    """Yields each step of the job when the first worker has made it."""
    furthest = 0
    for step in seen:
        if step.step > furthest:
            furthest = step.step
            yield step


def _lost_at(seen: list[StepMade]) -> set[int]:
    """Returns the numbers of steps that were made with nothing, for their round was dropped."""
    lost: set[int] = set()
    known: dict[int, int] = {}
    for step in seen:
        before = known.get(step.rank, step.lost)
        if step.lost > before:
            lost.add(step.step)
        known[step.rank] = step.lost
    return lost


def _idle(times: list[float], noticed: Sequence[float], bounds: list[float]) -> Iterator[float]:
    """Yields, for each fault that somebody noticed, the time from then until the job's next step."""
    for start, end in itertools.pairwise(bounds):
        first = min((t for t in noticed if start <= t < end), default=None)
        after = min((t for t in times if first is not None and t > first), default=None)
        if first is not None and after is not None:
            yield after - first


def _joins(made: list[StepMade], steps_per_round: int) -> Iterator[float]:
    """Yields what each newcomer cost: its step's time, less the usual one of steps at that place in a round."""
    took = [(b, b.at_s - a.at_s, b.members - a.members) for a, b in itertools.pairwise(made)]
    for step, seconds, more in took:
        if more > 0:
            place = step.step % steps_per_round
            usual = [s for other, s, change in took if not change and other.step % steps_per_round == place]
            yield seconds - (statistics.median(usual) if usual else 0.0)


def _longest(times: list[float]) -> float:
    return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


def _strike(
    bench: GoodputBench,
    lab: Lab,
    struck: list[tuple[float, str, int]],
    began: threading.Event,
    ended: threading.Event,
) -> None:
    """Breaks workers until the job has ended."""
    chance = random.Random(bench.seed)
    began.wait()
    outage_s = min(bench.outage_s, bench.every_s / 2)
    next_s = time.monotonic() + bench.every_s
    while bench.every_s and not ended.wait(max(0.0, next_s - time.monotonic())):
        next_s += bench.every_s
        kind = chance.choice(bench.kinds)
        # The lighthouse is on host 0, which may not be cut off.
        rank = chance.randrange(1 if kind == "cut" else 0, bench.workers)
        struck.append((time.monotonic(), kind, rank))
        begin, end = _acts(lab, kind)
        try:
            begin(rank)
            if end is not None:
                ended.wait(outage_s)
                end(rank)
        except LabError:  # the job has just ended
            return


def _acts(lab: Lab, kind: Kind) -> tuple[Callable[[int], None], Callable[[int], None] | None]:
    return {"kill": (lab.kill, None), "freeze": (lab.freeze, lab.thaw), "cut": (lab.cut, lab.mend)}[kind]
