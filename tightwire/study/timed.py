"""What each worker of an equal-time comparison runs: jobs trained for so many seconds each, one after another.

python -m tightwire.study.timed orders.json
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import pathlib
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightwire._attach import attach
from tightwire.compression import Codec, compile_kernels
from tightwire.plan import Plan
from tightwire.planner import Allowance
from tightwire.runtime import Race, Run
from tightwire.runtime.shortlist import SEEDED
from tightwire.study.jobs import JOBS
from tightwire.study.study import STOCK
from tightwire.study.task import Place, Replica
from tightwire.study.trial import stock
from tightwire.transport import Transport, init, shutdown

DEADLINE_S = 90.0
SNAPSHOTS = 16
CHECK_EVERY_S = 0.5
# The loss of one moment moves by a tenth between snapshots; the mean over what is left after this share, by less.
LATE = 0.75
# What is compared besides plans and stock DDP: how a plan is found.
FOUND: dict[str, Allowance] = {"auto-lossy": "lossy", "auto-stale": "stale"}
RACED: dict[str, Allowance] = {"race-lossy": "lossy", "race-stale": "stale"}


@dataclass(frozen=True, kw_only=True)
class TimedTrial:
    """One job, trained for a time.

    Attributes:
        job: its name.
        rate_bytes_per_s: of each worker's link.
        seconds: that training was to take, choosing a plan included.
        contestant: `ddp`, `ddp+powersgd:4`, a plan, or how one is found: `auto-lossy`, `race-stale` and their kin.
        seed: of weights and data.
        plan: that training ended under.
        steps: made.
        loss: held out, at the end; None where it is not finite.
        curve: (seconds, steps, held-out loss of rank 0's model) at regular times.
        contenders: of a race, as on its record.
        why: the plan was chosen.
        error: why it could not be made; empty where it was.
    """

    job: str
    rate_bytes_per_s: float
    seconds: float
    contestant: str
    seed: int = 0
    plan: str = ""
    steps: int = 0
    loss: float | None = None
    curve: tuple[tuple[float, int, float | None], ...] = ()
    contenders: tuple[dict[str, Any], ...] = ()
    why: tuple[str, ...] = ()
    error: str = ""

    @property
    def key(self) -> tuple[str, float, float, str, int]:
        """What was asked for."""
        return self.job, self.rate_bytes_per_s, self.seconds, self.contestant, self.seed

    @property
    def late_loss(self) -> float:
        """The mean of the curve over the last quarter of the time; infinity where a loss of it is not finite."""
        late = [loss for seconds, _, loss in self.curve if seconds >= LATE * self.seconds]
        return statistics.fmean(math.inf if loss is None else loss for loss in late) if late else math.inf

    def first_at(self, loss: float) -> float | None:
        """Returns the seconds until the curve first reaches a loss, straight between its points; None if never."""
        before: tuple[float, float] | None = None
        for seconds, _, found in self.curve:
            if found is None:
                continue
            if found <= loss:
                if before is None or before[1] <= found:
                    return seconds
                return before[0] + (seconds - before[0]) * (before[1] - loss) / (before[1] - found)
            before = (seconds, found)
        return None


@dataclass(frozen=True)
class _Bound:
    """A replica in step with the others: what to call, and what is told and asked."""

    model: nn.Module
    hear: Callable[[Tensor], None]
    finish: Callable[[], dict[str, Any]]


def train(asked: TimedTrial, transport: Transport) -> TimedTrial:
    """Trains until time is up, and judges.

    Time runs from before `attach`, so that what is spent on choosing a plan counts; all ranks stop at the same step.

    Contract: every rank; blocks. The result is rank 0's.
    """
    job = JOBS[asked.job]
    replica = job.replica(Place(rank=transport.rank, workers=transport.size, seed=asked.seed))
    [optimizer] = job.settings.build(replica.model.parameters())
    channel = transport.channel()
    try:
        channel.barrier()
        start_s = time.perf_counter()
        with _bound(asked, replica, optimizer, channel) as bound:
            steps, snapshots = _steps(asked, replica, bound, optimizer, start_s, channel)
            facts = bound.finish()
        loss = _finite(replica.judge())
        curve = [(s, n, _judge(replica, flat)) for s, n, flat in snapshots] if transport.rank == 0 else []
    finally:
        channel.close()
    return TimedTrial(**asdict(asked) | facts | {"steps": steps, "loss": loss, "curve": tuple(curve)})


def _steps(
    asked: TimedTrial,
    replica: Replica,
    bound: _Bound,
    optimizer: torch.optim.Optimizer,
    start_s: float,
    channel: Transport,
) -> tuple[int, list[tuple[float, int, Tensor]]]:
    steps, next_check, is_over = 0, 1, False
    snapshots: list[tuple[float, int, Tensor]] = []
    while not is_over:
        optimizer.zero_grad()
        loss = replica.loss(bound.model, replica.batch())
        loss.backward()
        bound.hear(loss)
        optimizer.step()
        steps += 1
        if steps == next_check:
            elapsed_s = time.perf_counter() - start_s
            stride = max(1, int(CHECK_EVERY_S * steps / elapsed_s))
            told = json.loads(channel.exchange(json.dumps([elapsed_s, stride]).encode())[0])
            is_over, next_check = told[0] >= asked.seconds, steps + told[1]
            if is_over or told[0] >= (len(snapshots) + 1) * asked.seconds / SNAPSHOTS:
                flat = nn.utils.parameters_to_vector(replica.model.parameters()).detach()
                snapshots.append((elapsed_s, steps, flat))
    return steps, snapshots


@contextlib.contextmanager
def _bound(
    asked: TimedTrial, replica: Replica, optimizer: torch.optim.Optimizer, channel: Transport
) -> Iterator[_Bound]:
    who = asked.contestant
    if who in STOCK:
        yield _Bound(stock(who, replica.model), lambda loss: None, lambda: {"plan": who})
        return
    allow = (FOUND | RACED).get(who, "lossless")
    plan = Race(budget=f"{asked.seconds:g}s") if who in RACED else "auto" if who in FOUND else who
    with attach(replica.model, optimizer, plan, allow=allow, transport=channel) as run:
        yield _Bound(replica.model, run.report_loss, lambda: _finished(run))


def _finished(run: Run) -> dict[str, Any]:
    run.finish()
    report = run.report()
    return {
        "plan": report.plan,
        "contenders": tuple(asdict(contender) for contender in report.contenders),
        "why": report.why,
    }


@torch.no_grad()
def _judge(replica: Replica, flat: Tensor) -> float | None:
    nn.utils.vector_to_parameters(flat, replica.model.parameters())
    return _finite(replica.judge())


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _load_kernels() -> None:
    """Has the usual codecs' kernels in memory, as torch's own are: the first trial with any would pay for all."""
    for sender in dict.fromkeys(Plan.parse(text).sender for text in SEEDED):
        if isinstance(sender, Codec):
            compile_kernels(sender)


def main(path: pathlib.Path) -> None:
    """Makes the trials of an order; rank 0 prints one JSON object for each."""
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    _load_kernels()
    transport = init(deadline_s=DEADLINE_S)
    for row in json.loads(path.read_text(encoding="utf-8")):
        if transport.rank == 0:
            print(json.dumps({"began": row}), flush=True)
        try:
            trial = train(TimedTrial(**row), transport)
        except Exception:
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            sys.exit(1)
        if transport.rank == 0:
            print(json.dumps({"trial": asdict(trial)}), flush=True)
    shutdown()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
