"""What Tightwire costs where it has nothing to do: a world of one, steps without exchange, and the import.

Steps are timed by the processor time of the thread that makes them, which other processes disturb least.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tightwire._attach import attach
from tightwire.runtime.membership import Standing
from tightwire.runtime.options import OptionsDigest
from tightwire.transport import Single, Transport, run_threads

STEP_S = 0.02
# Policies whose first exchange is far away.
FAR = 10**9
POLICIES = (
    f"local:{FAR}",
    f"hierarchical-local:{FAR},{FAR},node=2",
    f"adacomm:{FAR}",
    f"easgd:{FAR}",
    f"slowmo:{FAR}",
    f"diloco:{FAR}",
    f"diloco:{FAR}/allreduce/none/streaming:4",
    f"fedavg:{FAR}",
)
GROUPS = (1, 200)
IMPORTS = (
    "import time, torch; start = time.perf_counter(); import tightwire; print(time.perf_counter() - start)"
)


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What was measured; medians.

    Attributes:
        plain_step_s: a training step in plain PyTorch, of about 20 ms.
        attached_step_s: the same step under `attach` in a world of one.
        ratio: median of the pairs' ratios, attached over plain.
        identical: whether both ended with the same parameters, to the bit.
        import_s: what `import tightwire` adds to `import torch`.
        policy_ratios: by plan, the same ratio for steps between two workers in which nothing is exchanged.
        comparing_s: by number of optimizer groups, what it takes in each round to have ranks compare all rates and
            counts of passes; while a schedule changes the rate of every group in every step.
    """

    plain_step_s: float
    attached_step_s: float
    ratio: float
    identical: bool
    import_s: float
    policy_ratios: dict[str, float]
    comparing_s: dict[int, float]


class _Trainee:
    """A model whose step takes about 20 ms on one core, seeded, so that two of them are alike."""

    def __init__(self, batch: int) -> None:
        torch.manual_seed(0)
        layers = [module for _ in range(12) for module in (nn.Linear(256, 256), nn.ReLU())]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.x = torch.randn(batch, 256)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def parameters(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def measure(samples: int = 200) -> Overhead:
    """Times plain and attached steps by turns, so that what disturbs the machine disturbs both."""
    torch.set_num_threads(1)
    batch = _batch_for(STEP_S)
    plain, attached = _Trainee(batch), _Trainee(batch)
    with attach(attached.model, attached.optimizer, "bsp", transport=Single()):
        pairs = [(_seconds(plain.step), _seconds(attached.step)) for _ in range(samples)]
    return Overhead(
        plain_step_s=statistics.median(p for p, _ in pairs),
        attached_step_s=statistics.median(a for _, a in pairs),
        ratio=statistics.median(a / p for p, a in pairs),
        identical=torch.equal(plain.parameters(), attached.parameters()),
        import_s=statistics.median(_import_s() for _ in range(3)),
        policy_ratios={plan: _policy_ratio(plan, batch, max(5, samples // 4)) for plan in POLICIES},
        comparing_s={groups: _comparing_s(groups) for groups in GROUPS},
    )


def _policy_ratio(plan: str, batch: int, samples: int) -> float:
    """Returns attached over plain, median of pairs, beside a second worker that only waits."""

    def worker(transport: Transport) -> list[float]:
        plain, attached = _Trainee(batch), _Trainee(batch)
        run = attach(attached.model, attached.optimizer, plan, transport=transport)
        pairs = (
            [(_seconds(plain.step), _seconds(attached.step)) for _ in range(samples)]
            if transport.rank == 0
            else []
        )
        transport.barrier()
        run.close()
        return [a / p for p, a in pairs]

    return statistics.median(run_threads(2, worker, deadline_s=600.0)[0])


def _comparing_s(num_groups: int) -> float:
    """Returns what a round takes to say what must be equal, with the rate of every group changed since the last."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(num_groups)]
    optimizer = torch.optim.AdamW(groups)
    digest = OptionsDigest()

    def compare() -> None:
        digits = Standing(0, digest.of(optimizer.param_groups)).digits()
        sums = torch.tensor([*digits, *(digit * digit for digit in digits)]).tolist()
        all(round(a) ** 2 == round(b) for a, b in zip(sums[: len(digits)], sums[len(digits) :], strict=True))

    times = []
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 1.0 / (step + 1)
        times.append(_seconds(compare))
    return statistics.median(times)


def _batch_for(seconds: float) -> int:
    """Returns the batch whose step takes about `seconds` here."""
    trial = _Trainee(256)
    trial.step()
    per_sample_s = statistics.median(_seconds(trial.step) for _ in range(5)) / 256
    return max(1, round(seconds / per_sample_s))


def _seconds(work: Callable[[], None]) -> float:
    start_s = time.thread_time()
    work()
    return time.thread_time() - start_s


def _import_s() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    return float(done.stdout)
