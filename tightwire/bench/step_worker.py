"""The working half of `bench step`: `python -m tightwire.bench.step_worker JSON` runs on the hosts of a lab."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from tightwire.bench.step import ALONE, StepBench, StepRow, bucket_mb
from tightwire.plan import Plan
from tightwire.schedule import Auto
from tightwire.workloads.emulated import Workload, emulated

if TYPE_CHECKING:
    from torch import nn

WARM_UP_STEPS = 7  # schedules that measure themselves have rebuilt their buckets by then
SEARCH_STEPS = 400  # `auto` may take so many before it is measured; it stops by itself


class Trainable(Protocol):
    """What is trained: a fresh model for each plan, and the loss whose backward makes a step."""

    def model(self) -> nn.Module:
        """Builds the model, the same on every rank."""

    def loss(self, called: Callable[[Any], Any]) -> Any:
        """Returns a scalar from the model, or from what wraps it."""


class Emulated:
    """The workload's tensors, and waits in place of compute."""

    def __init__(self, workload: Workload) -> None:
        import torch

        self._workload, self._x = workload, torch.zeros(1, requires_grad=True)

    def model(self) -> nn.Module:
        """Builds the model."""
        return emulated(self._workload)

    def loss(self, called: Callable[[Any], Any]) -> Any:
        """Returns a sum."""
        return called(self._x).sum()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model bound to its replicas.

    Attributes:
        step: makes one.
        is_settled: whether it is ready to be measured.
        chosen: the schedule that was searched for; None where none is.
    """

    step: Callable[[], None]
    is_settled: Callable[[], bool] = lambda: True
    chosen: Callable[[], str | None] = lambda: None


class StepWorker:
    """One rank of the bench."""

    def __init__(self, bench: StepBench, subject: Trainable) -> None:
        import torch

        import tightwire.transport as transport

        torch.set_num_threads(1)
        self.bench, self.subject, self.transport = bench, subject, transport.init()

    def run(self) -> None:
        """Measures every plan; rank 0 prints a row each."""
        for plan in self.bench.plans:
            self._tell(self._measured(plan))

    def run_beside_alone(self) -> None:
        """Measures all ranks computing at once without an exchange, which is then what compute is, and every plan."""
        alone = self._measured(ALONE)
        self.bench = replace(self.bench, workload=replace(self.bench.workload, compute_s=alone.step_s))
        self._tell(replace(alone, ratio=alone.step_s / self.bench.bound_s))
        self.run()

    def _measured(self, plan: str) -> StepRow:
        with self._bound(plan) as trained:
            return self._row(plan, self._time(trained), trained.chosen())

    def _tell(self, row: StepRow) -> None:
        if self.transport.rank == 0:
            print(json.dumps(asdict(row)), flush=True)

    @contextlib.contextmanager
    def _bound(self, plan: str) -> Iterator[Trained]:
        """Binds a fresh model to its replicas."""
        import torch
        from torch.nn.parallel import DistributedDataParallel

        from tightwire._attach import attach

        model = self.subject.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(called: nn.Module) -> None:
            optimizer.zero_grad()
            self.subject.loss(called).backward()
            optimizer.step()

        if plan == ALONE:
            yield Trained(step=lambda: step(model))
            return
        size_mb = bucket_mb(plan)
        if size_mb is not None:
            wrapped = DistributedDataParallel(model, bucket_cap_mb=size_mb)
            yield Trained(step=lambda: step(wrapped))
            return
        asked = Plan.parse(plan).schedule
        with attach(model, optimizer, plan, transport=self.transport) as run:
            yield Trained(
                step=lambda: step(model),
                is_settled=lambda: run.is_settled,
                chosen=lambda: str(run.plan.schedule) if isinstance(asked, Auto) else None,
            )

    def _time(self, trained: Trained) -> list[float]:
        """Returns the seconds of each step, from when all ranks had ended one until all have ended the next."""
        for number in range(SEARCH_STEPS):
            if number >= WARM_UP_STEPS and trained.is_settled():
                break
            trained.step()
        self.transport.barrier()
        trained.step()
        ends_s = [time.perf_counter()]
        for _ in range(self.bench.steps):
            trained.step()
            ends_s.append(time.perf_counter())
        # The hosts of a lab are one machine: their clocks are one.
        everyone = [json.loads(text) for text in self.transport.exchange(json.dumps(ends_s).encode())]
        ends_s = [max(of_step) for of_step in zip(*everyone, strict=True)]
        return [b - a for a, b in itertools.pairwise(ends_s)]

    def _row(self, plan: str, steps_s: list[float], chosen: str | None) -> StepRow:
        step_s = statistics.median(steps_s)
        return StepRow(
            plan=plan,
            step_s=step_s,
            ratio=step_s / self.bench.bound_s,
            low_s=min(steps_s),
            high_s=max(steps_s),
            chosen=chosen,
        )


def read(text: str) -> StepBench:
    """Reads a bench as `measure_in` writes it."""
    fields = json.loads(text)
    workload = fields["workload"]
    workload["layers"] = tuple(map(tuple, workload["layers"]))
    return StepBench(**fields | {"workload": Workload(**workload), "plans": tuple(fields["plans"])})


if __name__ == "__main__":
    asked = read(sys.argv[1])
    StepWorker(asked, Emulated(asked.workload)).run()
