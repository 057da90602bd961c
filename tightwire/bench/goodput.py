"""How much of its fault-free throughput an elastic job keeps while workers are killed, stopped and cut off.

Workers live on hosts of the lab, and a worker that is killed is started anew. Compute is emulated by timed waits, so
that the cores of one machine stand for those of many. Each worker prints every step; what counts is read from that:

- *progress*: steps that the job made, less those that were dropped because a round lost a member;
- *samples*: over these steps, the workers that took part in each.

Run as a module, `python -m tightwire.bench.goodput JSON`, it is one worker.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Topology

Kind = Literal["kill", "freeze", "cut"]
KINDS: Final[tuple[Kind, ...]] = ("kill", "freeze", "cut")
MARK: Final = "STEP "
DONE: Final = "DONE"
# After the first worker's end, one that was just started anew and is in no world yet is waited for so long.
PATIENCE_S: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class GoodputBench:
    """What is measured.

    Attributes:
        plan: of the job.
        workers: how many.
        rate_bytes_per_s: of each worker's line.
        seconds: of a run, from the first step on.
        every_s: between faults; 0: none.
        kinds: of faults, drawn from.
        outage_s: after so long a stopped worker goes on, and a cut line is mended.
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
        waited_s: the longest time between two steps of the job where there was no fault.
    """

    plan: str
    faults: tuple[tuple[float, str, int], ...]
    seconds: float
    steps: int
    samples: int
    lost_rounds: int
    gaps_s: tuple[float, ...] = field(default=())
    waited_s: float = 0.0

    @property
    def steps_per_s(self) -> float:
        """Progress per second."""
        return self.steps / self.seconds if self.seconds else 0.0

    @property
    def samples_per_s(self) -> float:
        """Workers' steps per second."""
        return self.samples / self.seconds if self.seconds else 0.0


def run(bench: GoodputBench) -> GoodputRow:
    """Runs a job for some time among faults.

    Raises:
        LabError: no worker made a step, or one failed by itself.
    """
    seen: list[StepMade] = []
    struck: list[tuple[float, str, int]] = []
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
        elif line.stream == "stderr":
            print(f"[{line.rank}] {line.text}", file=sys.stderr)

    topology = Topology(workers=bench.workers, rate_bytes_per_s=bench.rate_bytes_per_s)
    with Lab(topology, batch_scheduling=True) as lab:
        driver = threading.Thread(target=_strike, args=(bench, lab, struck, began, ended), daemon=True)
        driver.start()
        command = [sys.executable, "-W", "ignore", "-m", "tightwire.bench.goodput", json.dumps(asdict(bench))]
        try:
            result = lab.run(command, on_line=on_line, elastic=bench.elastic)
        finally:
            ended.set()
            began.set()
            driver.join()
    if not seen or not done or not (result.ok or bench.elastic):
        raise LabError(f"{bench.plan}: {result.describe()} {len(seen)} steps were made.")
    return account(bench.plan, seen, struck)


def account(plan: str, seen: list[StepMade], struck: list[tuple[float, str, int]]) -> GoodputRow:
    """Returns what was achieved.

    Args:
        plan: of the job.
        seen: all workers' steps, in order of time.
        struck: faults: when, by the same clock, what, and on whom.
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
        waited_s=_longest([t for t in times if t <= until_s]),
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
    while bench.every_s and not ended.wait(bench.every_s):
        kind = chance.choice(bench.kinds)
        # The lighthouse is on host 0, which may not be cut off.
        rank = chance.randrange(1 if kind == "cut" else 0, bench.workers)
        struck.append((time.monotonic(), kind, rank))
        begin, end = _acts(lab, kind)
        try:
            begin(rank)
            if end is not None:
                ended.wait(bench.outage_s)
                end(rank)
        except LabError:  # the job has just ended
            return


def _acts(lab: Lab, kind: Kind) -> tuple[Callable[[int], None], Callable[[int], None] | None]:
    return {"kill": (lab.kill, None), "freeze": (lab.freeze, lab.thaw), "cut": (lab.cut, lab.mend)}[kind]


def main() -> None:
    """Is one worker: trains until the time is over on the worker that has seen most of it."""
    import torch

    import tightwire

    bench = GoodputBench(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    tightwire.init(elastic=bench.elastic, deadline_s=bench.deadline_s)
    torch.manual_seed(0)
    width = 250
    layers = max(1, round(bench.parameters / (width * width)))
    model = torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(layers)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(1, width)
    clock = JobClock()
    with tightwire.attach(
        model, optimizer, bench.plan, carry={"clock": clock} if bench.elastic else None
    ) as run:
        while clock.seconds < bench.seconds:
            clock.begin()
            optimizer.zero_grad()
            loss = model(x).square().mean()
            time.sleep(bench.compute_s)
            loss.backward()
            optimizer.step()
            print(f"{MARK}{run.step} {run.lost_rounds} {run.transport.size}", flush=True)
    print(DONE, flush=True)


class JobClock:
    """Seconds since the job's first step, which a newcomer takes from a member."""

    def __init__(self) -> None:
        self._began_s: float | None = None

    @property
    def seconds(self) -> float:
        """Since then."""
        return 0.0 if self._began_s is None else time.time() - self._began_s

    def begin(self) -> None:
        """Starts, once."""
        if self._began_s is None:
            self._began_s = time.time()

    def state_dict(self) -> dict[str, float]:
        """Returns when it began: all hosts of a lab have one clock."""
        return {} if self._began_s is None else {"began_s": self._began_s}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Takes another's."""
        self._began_s = state_dict.get("began_s", self._began_s)


if __name__ == "__main__":
    main()
