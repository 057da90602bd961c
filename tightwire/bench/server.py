"""How many gradients count per second where one worker is slow: servers' policies beside waiting for all.

The launching half builds the lab; the working half, `python -m tightwire.bench.server JSON`, runs on its hosts.
Compute is emulated by timed waits that release the processor, so that workers which share cores do not slow each
other down.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tightwire.bench.ranks import run_ranks
from tightwire.errors import PlanError
from tightwire.lab import Lab, Topology
from tightwire.plan import Plan

FEATURES = 64
WARM_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class ServerBench:
    """What to measure.

    Attributes:
        workers: hosts in the lab.
        rate_bytes_per_s: of each host's link, each way.
        plans: to compare; the first one is what the others are measured against.
        slow_rank: who is slow; −1: one worker at a time, drawn for every step.
        slow_factor: how many times as long its compute takes.
        compute_s: emulated compute of a step.
        numel: parameters of the model, about.
        seconds: per plan.
    """

    workers: int
    rate_bytes_per_s: float
    plans: tuple[str, ...]
    slow_rank: int
    slow_factor: float
    compute_s: float = 0.06
    numel: int = 65536
    seconds: float = 8.0

    def __post_init__(self) -> None:
        for plan in self.plans:
            Plan.parse(plan)
        if not -1 <= self.slow_rank < self.workers or self.slow_factor < 1:
            raise PlanError(
                f"rank {self.slow_rank} cannot take {self.slow_factor:g} times as long: give one of 0 to "
                f"{self.workers - 1}, or any, and a factor of at least 1, as in 3:3x."
            )

    def wait_s(self, rank: int, step: int) -> float:
        """Returns how long a worker computes in a step."""
        slow = random.Random(step).randrange(self.workers) if self.slow_rank < 0 else self.slow_rank
        return self.compute_s * (self.slow_factor if rank == slow else 1.0)


@dataclass(frozen=True, kw_only=True)
class ServerRow:
    """One plan.

    Attributes:
        plan: its text.
        gradients_per_s: of all workers together, those dropped as late left out.
        steps_per_s: of the fastest worker: rounds, where there are any.
        ratio: gradients_per_s over the first plan's.
        steps_ratio: steps_per_s over the first plan's.
        late: gradients that came after their round and were dropped, of all workers.
        steps: made by each worker.
        staleness: how many gradients were so many updates old, of all workers.
    """

    plan: str
    gradients_per_s: float
    steps_per_s: float
    ratio: float
    steps_ratio: float
    late: int
    steps: tuple[int, ...]
    staleness: dict[int, int]


def measure(
    bench: ServerBench, on_row: Callable[[str], None] = lambda plan: None
) -> tuple[list[ServerRow], str]:
    """Runs the bench in a lab.

    Returns:
        A row per plan, and what the lab says of itself.

    Raises:
        LabError: no lab is possible here, or its workers failed.
    """
    rows: list[ServerRow] = []

    def on_message(found: dict[str, Any]) -> None:
        first = rows[0] if rows else ServerRow(**found, ratio=1.0, steps_ratio=1.0)
        rows.append(
            ServerRow(
                **found,
                ratio=found["gradients_per_s"] / first.gradients_per_s,
                steps_ratio=found["steps_per_s"] / first.steps_per_s,
            )
        )
        on_row(found["plan"])

    with Lab(Topology.parse("star", bench.workers, bench.rate_bytes_per_s)) as lab:
        about = lab.describe()
        run_ranks(lab, __spec__.name, bench, on_message)
    return rows, f"{about} Compute is emulated: {bench.compute_s * 1e3:g} ms a step, waited for."


def work(bench: ServerBench) -> None:
    """Runs one rank of the bench; rank 0 prints a line per plan."""
    import torch

    import tightwire.transport as transport

    torch.set_num_threads(1)
    world = transport.init(deadline_s=60.0)
    for plan in bench.plans:
        mine = _train(bench, plan, world.rank)
        facts = [json.loads(fact) for fact in world.exchange(json.dumps(mine).encode())]
        if world.rank == 0:
            print(json.dumps(_summary(plan, facts)), flush=True)


def _train(bench: ServerBench, plan: str, rank: int) -> dict[str, object]:
    """Trains for a while; returns what this worker did."""
    import torch
    from torch import nn

    from tightwire._attach import attach

    model = nn.Sequential(*(nn.Linear(FEATURES, FEATURES) for _ in range(max(4, bench.numel // FEATURES**2))))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(8, FEATURES)
    with attach(model, optimizer, plan) as run:
        step, start_s, start = 0, 0.0, 0
        while not start_s or time.monotonic() < start_s + bench.seconds:
            if step == WARM_STEPS:  # connections, kernels and buffers are there
                start_s, start = time.monotonic(), step
            optimizer.zero_grad()
            model(x).square().mean().backward()
            time.sleep(bench.wait_s(rank, step))
            optimizer.step()
            step += 1
        seconds = time.monotonic() - start_s
    report = run.report()
    return {"steps": step - start, "seconds": seconds, "late": report.late, "staleness": report.staleness}


def _summary(plan: str, facts: list[dict[str, object]]) -> dict[str, object]:
    staleness: dict[int, int] = {}
    for fact in facts:
        for age, count in dict(fact["staleness"]).items():  # type: ignore[call-overload]
            staleness[int(age)] = staleness.get(int(age), 0) + count
    rates = [(int(str(f["steps"])), float(str(f["seconds"])), int(str(f["late"]))) for f in facts]
    return {
        "plan": plan,
        "gradients_per_s": sum((steps - late) / seconds for steps, seconds, late in rates),
        "steps_per_s": max(steps / seconds for steps, seconds, _ in rates),
        "late": sum(late for _, _, late in rates),
        "steps": [steps for steps, _, _ in rates],
        "staleness": dict(sorted(staleness.items())),
    }


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    work(ServerBench(**{**asked, "plans": tuple(asked["plans"])}))
