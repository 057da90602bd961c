"""A run under `auto` whose line slows down and recovers: steps until it has planned again, and what that is worth.

The launching half changes the lab's rate when the workers have made so many steps; the working half,
`python -m tightwire.validate.replanning JSON`, trains with emulated compute. The best static plan of a phase is the
fastest of plain all-reduce and those that `auto` used in any phase, each run at that phase's rate.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tightwire.errors import LabError
from tightwire.lab import Lab, Topology
from tightwire.lab.sharing import PRIORITY
from tightwire.workloads.emulated import FORWARD_SHARE, Waits

WORKERS = 4
RATES_BYTES_PER_S = (125e6, 12.5e6, 125e6)
# Steps that `auto` needs to look at the model, and steps of each phase.
FIRST_STEPS, PHASE_STEPS, STATIC_STEPS = 30, 45, 12
# A change of plan is due within so many steps; the rest of a phase is measured.
DUE_STEPS = 20
# A third of a layer's time is its forward pass. On the fast wire exact means hide behind the backward pass, and on the
# slow one they take four times as long as a step computes.
LAYERS, WIDTH, LAYER_S = 12, 512, 0.03
PLAIN = "bsp"


@dataclass(frozen=True, kw_only=True)
class PhaseOutcome:
    """One phase of the run.

    Attributes:
        rate_bytes_per_s: of every line.
        changed_after: steps from the change of the rate to the last change of plan; None: the plan stayed.
        changes: of plan.
        plan: at the end.
        step_s: of its last steps, the median.
        best_plan: the fastest static one.
        best_s: its step.
    """

    rate_bytes_per_s: float
    changed_after: int | None
    changes: int
    plan: str
    step_s: float
    best_plan: str
    best_s: float


def run_phases(allow: str = "lossy") -> list[PhaseOutcome]:
    """Runs all phases under `auto`, and the plans that it used at each rate.

    Raises:
        LabError: no lab is possible here, or a worker failed.
    """
    total = FIRST_STEPS + len(RATES_BYTES_PER_S) * PHASE_STEPS
    starts = [FIRST_STEPS + i * PHASE_STEPS for i in range(len(RATES_BYTES_PER_S))]
    steps: list[tuple[str, float]] = []
    with Lab(Topology(workers=WORKERS, rate_bytes_per_s=RATES_BYTES_PER_S[0])) as lab:

        def on_step(told: dict[str, Any]) -> None:
            steps.append((told["plan"], told["step_s"]))
            if len(steps) in starts[1:]:
                lab.set_rate(RATES_BYTES_PER_S[starts.index(len(steps))])

        _run(lab, {"plan": "auto", "allow": allow, "steps": total}, on_step)
        plans = list(dict.fromkeys([*(plan for plan, _ in steps[FIRST_STEPS:]), PLAIN]))
        static: dict[tuple[float, str], float] = {}
        for rate in dict.fromkeys(RATES_BYTES_PER_S):
            lab.set_rate(rate)
            for plan in plans:
                seen: list[float] = []
                _run(
                    lab,
                    {"plan": plan, "allow": allow, "steps": STATIC_STEPS},
                    lambda told, seen=seen: seen.append(told["step_s"]),
                )
                static[rate, plan] = statistics.median(seen[STATIC_STEPS // 2 :])
    return [
        _phase(steps[start : start + PHASE_STEPS], rate, static)
        for start, rate in zip(starts, RATES_BYTES_PER_S, strict=True)
    ]


def _phase(
    steps: Sequence[tuple[str, float]], rate: float, static: dict[tuple[float, str], float]
) -> PhaseOutcome:
    changed = [i for i in range(1, len(steps)) if steps[i][0] != steps[i - 1][0]]
    best_s, best_plan = min((seconds, plan) for (at, plan), seconds in static.items() if at == rate)
    return PhaseOutcome(
        rate_bytes_per_s=rate,
        changed_after=changed[-1] if changed else None,
        changes=len(changed),
        plan=steps[-1][0],
        step_s=statistics.median(seconds for _, seconds in steps[DUE_STEPS:]),
        best_plan=best_plan,
        best_s=best_s,
    )


def _run(lab: Lab, asked: dict[str, Any], on_step: Any) -> None:
    def on_line(line: Any) -> None:
        if line.rank == 0 and line.text.startswith("{"):
            on_step(json.loads(line.text))

    result = lab.run(
        [sys.executable, "-m", "tightwire.validate.replanning", json.dumps(asked)],
        on_line=on_line,
        timeout_s=600,
    )
    if not result.ok:
        raise LabError(f"a run whose line changes: {result.describe()}")


def work(asked: dict[str, Any]) -> None:
    """Trains on this host."""
    with contextlib.suppress(PermissionError):  # what else runs here is no part of the device
        os.nice(PRIORITY)
    import torch

    import tightwire as tw

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tw.init()
    wait = Waits()

    class Timed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            wait(FORWARD_SHARE * LAYER_S)
            return x + 0

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            wait((1 - FORWARD_SHARE) * LAYER_S)
            return gradients[0]

    class Slowed(torch.nn.Linear):
        """A layer that takes as long as on a slower device."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            timed: torch.Tensor = Timed.apply(super().forward(input))  # type: ignore[no-untyped-call]
            return timed

    model = torch.nn.Sequential(*(Slowed(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with tw.attach(model, optimizer, asked["plan"], allow=asked["allow"]) as run:
        for _ in range(asked["steps"]):
            began_s = time.perf_counter()
            optimizer.zero_grad()
            model(torch.randn(4, WIDTH)).square().mean().backward()
            optimizer.step()
            print(json.dumps({"plan": str(run.plan), "step_s": time.perf_counter() - began_s}), flush=True)
        if run.transport.rank == 0:
            print("\n".join(f"# {why}" for why in run.report().why), flush=True)


def main() -> None:
    """Prints the phases, where it is not asked to train."""
    if len(sys.argv) > 1:
        work(json.loads(sys.argv[1]))
        return
    for outcome in run_phases():
        print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
