"""One worker of `bench goodput`: trains until the time is over, and tells every step and every loss that it notices.

Run as a module, `python -m tightwire.bench.goodput_worker JSON`.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import torch

from tightwire.bench.goodput import DONE, ENTERED, LOST, MARK, SPENT, GoodputBench


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


class Spent:
    """Processor time of this process, all its threads, from its first step among all workers on."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._steps = 0

    def note(self, is_whole: bool) -> None:
        """Counts a step, or begins to count."""
        if self._began_s is not None:
            self._steps += 1
        elif is_whole:
            self._began_s = time.process_time()

    def tell(self) -> None:
        """Prints seconds per step."""
        if self._began_s is not None and self._steps:
            print(f"{SPENT}{(time.process_time() - self._began_s) / self._steps}", flush=True)


class TellsLosses(logging.Handler):
    """Prints a line when this worker notices that a member was lost, and when it is in another world."""

    def emit(self, record: logging.LogRecord) -> None:
        """Looks at what Tightwire logs."""
        from tightwire.runtime.membership import MEMBER_LOST, MEMBERS_CHANGED

        if record.msg in (MEMBER_LOST, MEMBERS_CHANGED):
            print(LOST if record.msg == MEMBER_LOST else ENTERED, flush=True)


class CountsRounds:
    """Takes what a run writes of each step, and keeps how many rounds there were."""

    def __init__(self) -> None:
        self.rounds = 0

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Looks for the number of rounds."""
        if tag.endswith("rounds"):
            self.rounds = int(scalar_value)


def job_of(bench: GoodputBench) -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.Tensor]:
    """Returns model, optimizer and input, the same on every worker."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = 250
    layers = max(1, round(bench.parameters / (width * width)))
    model = torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(layers)])
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), torch.randn(1, width)


def half_a_step(bench: GoodputBench, model: torch.nn.Module, x: torch.Tensor) -> None:
    """Makes gradients, as slowly as is asked."""
    loss = model(x).square().mean()
    time.sleep(bench.compute_s)
    loss.backward()


def tell(step: int, lost: int, members: int, rounds: int) -> None:
    """Prints that a step was made."""
    print(f"{MARK}{step} {lost} {members} {rounds}", flush=True)


def main() -> None:
    """Is one worker."""
    import tightwire

    bench = GoodputBench(**json.loads(sys.argv[1]))
    log = logging.getLogger("tightwire")
    log.addHandler(TellsLosses())
    log.setLevel(logging.INFO)
    tightwire.init(elastic=bench.elastic, deadline_s=bench.deadline_s)
    model, optimizer, x = job_of(bench)
    clock, spent, counted = JobClock(), Spent(), CountsRounds()
    with tightwire.attach(
        model, optimizer, bench.plan, carry={"clock": clock} if bench.elastic else None
    ) as run:
        run.log_to(counted)
        while clock.seconds < bench.seconds:
            clock.begin()
            optimizer.zero_grad()
            half_a_step(bench, model, x)
            optimizer.step()
            tell(run.step, run.lost_rounds, run.transport.size, counted.rounds)
            spent.note(run.transport.size == bench.workers)
        spent.tell()
    print(DONE, flush=True)


if __name__ == "__main__":
    main()
