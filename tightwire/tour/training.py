"""Trains one replica for a fixed time under a plan, or under stock DDP, and says what came of it.

Runs on every worker alike; what rank 0 returns is the result.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tightwire._attach import attach
from tightwire.plan import Plan
from tightwire.runtime import Race
from tightwire.runtime.report import typical_step_s
from tightwire.study.trial import stock
from tightwire.tour.tour import RACE, RACE_SHARE, STOCK
from tightwire.transport import Transport
from tightwire.workloads.text import Corpus, draw
from tightwire.workloads.transformer import ByteTransformer

SEQUENCES = 4
LEARNING_RATE = 1e-3
HELDOUT_SEQUENCES = 64
SNAPSHOTS = 15
CHECK_EVERY_S = 1.0

Snapshot = tuple[float, int, list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class TourTraining:
    """What came of training under one plan.

    Attributes:
        plan: its text, or the name of a way of stock DDP; of a race the winner.
        steps: made.
        seconds: taken for them, snapshots and a race included, judging them not.
        step_s: of a typical step, exchanges in proportion.
        curve: (seconds, steps, held-out loss) at regular times, the start and the end included; rank 0 only.
        exposed_s: mean wait per step with nothing to compute; None under DDP, which does not tell.
        payload_bytes: sent by this worker in all steps; None under DDP, which does not tell.
    """

    plan: str
    steps: int
    seconds: float
    step_s: float
    curve: tuple[tuple[float, int, float], ...]
    exposed_s: float | None = None
    payload_bytes: int | None = None


@dataclass
class CommonStop:
    """Stops all ranks at the same step: rank 0 decides, about once a second."""

    transport: Transport
    seconds: float
    on_progress: Callable[[float], None]
    start_s: float = field(default_factory=time.perf_counter)
    _next_check: int = 1

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start_s

    def is_over(self, steps: int) -> bool:
        """Whether to stop after `steps` steps; the same answer on every rank. Every rank, after each step."""
        if steps < self._next_check:
            return False
        elapsed_s = self.elapsed_s
        stride = max(1, int(CHECK_EVERY_S * steps / elapsed_s))
        decision = json.loads(self.transport.exchange(json.dumps([elapsed_s, stride]).encode())[0])
        self._next_check = steps + int(decision[1])
        self.on_progress(float(decision[0]))
        return float(decision[0]) >= self.seconds


class TourReplica:
    """A model, its optimizer and its share of the text, the same on every rank but for the share."""

    def __init__(self, corpus: Corpus, rank: int) -> None:
        torch.manual_seed(0)
        self.model = ByteTransformer()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self._text = corpus.train
        self._generator = torch.Generator().manual_seed(1 + rank)
        self._heldout = draw(
            corpus.heldout,
            sequences=HELDOUT_SEQUENCES,
            length=self.model.length,
            generator=torch.Generator().manual_seed(0),
        )

    def step(
        self, model: nn.Module | None = None, hear: Callable[[Tensor], None] = lambda loss: None
    ) -> None:
        """Makes one training step, through the wrapped `model` where there is one, and tells its loss."""
        passages = draw(self._text, sequences=SEQUENCES, length=self.model.length, generator=self._generator)
        self.optimizer.zero_grad()
        loss = (model or self.model)(passages)
        loss.backward()
        hear(loss)
        self.optimizer.step()

    def snapshot(self) -> list[Tensor]:
        """Copies the parameters."""
        return [p.detach().clone() for p in self.model.parameters()]

    @torch.no_grad()
    def judge(self, snapshot: list[Tensor]) -> float:
        """Returns the held-out loss of a snapshot, in nats per byte."""
        for parameter, value in zip(self.model.parameters(), snapshot, strict=True):
            parameter.copy_(value)
        return float(self.model(self._heldout))


def train(
    plan: str,
    seconds: float,
    transport: Transport,
    corpus: Corpus,
    *,
    on_progress: Callable[[float], None] = lambda _: None,
    trace: pathlib.Path | None = None,
) -> TourTraining:
    """Trains a fresh replica under `plan` for `seconds`.

    Args:
        plan: a plan's text, `race`, or a way of stock DDP: `ddp` with its default buckets, or `ddp+powersgd:4`.
        seconds: until the step that ends after them; a race is run within them.
        transport: between the workers.
        corpus: what to learn, and what to be judged by.
        on_progress: told the seconds that have passed, about once a second.
        trace: where to write what this worker did when; not under DDP.

    Contract: every rank; blocks. Rank 0 judges its snapshots when time is up.
    """
    replica = TourReplica(corpus, transport.rank)
    transport.barrier()
    clock = CommonStop(transport, seconds, on_progress)
    with _bound(plan, replica, transport, trace, seconds) as (model, hear, account):
        if plan != RACE:  # of which attaching is a part
            transport.barrier()
            clock = CommonStop(transport, seconds, on_progress)
        ends_s, snapshots = _train_until(clock, replica, model, hear)
        facts = account()
    steps_s = [b - a for a, b in itertools.pairwise(ends_s)]
    plan = facts.pop("plan", plan)
    found_s = facts.pop("step_s", None)
    return TourTraining(
        plan=plan,
        steps=len(steps_s),
        seconds=ends_s[-1],
        step_s=found_s or typical_step_s(steps_s[1:] or steps_s, _steps_per_round(plan)) or math.nan,
        curve=tuple((t, s, replica.judge(x)) for t, s, x in snapshots) if transport.rank == 0 else (),
        **facts,
    )


def _steps_per_round(plan: str) -> int:
    return 1 if plan in STOCK else Plan.parse(plan).sync.steps_per_round


def _train_until(
    clock: CommonStop, replica: TourReplica, model: nn.Module, hear: Callable[[Tensor], None]
) -> tuple[list[float], list[Snapshot]]:
    """Returns when each step ended, and snapshots at regular times."""
    ends_s, snapshots = [0.0], [(0.0, 0, replica.snapshot())]
    while len(ends_s) == 1 or not clock.is_over(len(ends_s) - 1):
        replica.step(model, hear)
        ends_s.append(clock.elapsed_s)
        if ends_s[-1] >= len(snapshots) * clock.seconds / SNAPSHOTS:
            snapshots.append((ends_s[-1], len(ends_s) - 1, replica.snapshot()))
    if snapshots[-1][1] < len(ends_s) - 1:
        snapshots.append((ends_s[-1], len(ends_s) - 1, replica.snapshot()))
    return ends_s, snapshots


@contextlib.contextmanager
def _bound(
    plan: str, replica: TourReplica, transport: Transport, trace: pathlib.Path | None, seconds: float
) -> Iterator[tuple[nn.Module, Callable[[Tensor], None], Callable[[], dict[str, Any]]]]:
    """Binds the replica to the others; yields the module to call, who hears losses, and an account of what was sent."""
    if plan in STOCK:
        yield stock(plan, replica.model), lambda loss: None, dict
        return
    wanted = Race(budget=f"{seconds:g}s", share=RACE_SHARE) if plan == RACE else plan
    with attach(replica.model, replica.optimizer, wanted, transport=transport, allow="stale") as run:

        def account() -> dict[str, Any]:
            run.finish()
            if trace is not None:
                run.trace(trace)
            report = run.report()
            facts = {"exposed_s": report.exposed_s, "payload_bytes": report.sent_bytes}
            return facts | ({"plan": report.plan, "step_s": report.step_s} if plan == RACE else {})

        yield replica.model, run.report_loss, account
