"""One trial: a task trained under a plan from given weights, and what came of it. Runs on every worker alike."""

from __future__ import annotations

import contextlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tightwire._attach import attach
from tightwire.plan import Plan
from tightwire.study.results import Trial, Wanted
from tightwire.study.settings import TrainingSettings
from tightwire.study.study import ANY, DDP, STOCK, Scene
from tightwire.study.task import Place, Replica, Task
from tightwire.transport import Transport
from tightwire.transport.base import native_bytes

POWERSGD_STARTS_AT = 2  # the hook's default is to do nothing for 1,000 steps; 2 is the least it takes
ONE_BUCKET_MB = 1 << 12

Snapshot = tuple[float, int, Tensor]
COUNTED = ("sent_bytes", "exposed_s", "rounds", "skipped", "staleness")


@dataclass(frozen=True)
class Bound:
    """A replica that is kept in step with the others.

    Attributes:
        model: to be called.
        account: ends what is under way, and tells what was sent.
        hear: is told the loss of the step under way.
    """

    model: nn.Module
    account: Callable[[], dict[str, Any]]
    hear: Callable[[Tensor], None] = lambda loss: None


@dataclass(frozen=True)
class EmulatedCompute:
    """Emulated compute: the wait that a step begins with.

    Attributes:
        scene: says how long, and who is slow.
        place: this worker.
    """

    scene: Scene
    place: Place

    def waits_s(self) -> Iterator[float]:
        """Yields each step's wait."""
        scene = self.scene
        draws = random.Random(self.place.seed)  # alike on every rank
        while True:
            rank = draws.randrange(self.place.workers) if scene.slow_rank == ANY else scene.slow_rank
            slow = draws.random() < scene.slow_share and rank == self.place.rank
            yield scene.wait_s * (scene.slow_factor if slow else 1.0)


def warm_up(task: Task, settings: TrainingSettings) -> None:
    """Makes a step whose model is thrown away: what torch loads for its first, seconds, is in no trial's time."""
    replica = task.replica(Place(rank=0, workers=1))
    optimizers = settings.build(replica.model.parameters())
    replica.loss(replica.model, replica.batch()).backward()
    for optimizer in optimizers:
        optimizer.step()


def train(
    wanted: Wanted, task: Task, scene: Scene, settings: TrainingSettings, transport: Transport
) -> Trial:
    """Trains and judges; the result is rank 0's, with all workers' bytes and waits.

    Contract: every rank; blocks. Connections are the trial's own and are closed at its end.
    """
    place = Place(rank=transport.rank, workers=transport.size, seed=wanted.seed, split=scene.split)
    replica = task.replica(place)
    optimizers = settings.build(replica.model.parameters())
    channel = transport.channel()
    try:
        with _bound(wanted, replica, optimizers, channel) as bound:
            channel.barrier()
            seconds, snapshots = _steps(
                wanted, replica, bound, optimizers, settings, EmulatedCompute(scene, place)
            )
            facts = bound.account()
        return _result(wanted, replica, seconds, snapshots, facts, channel)
    finally:
        channel.close()


def _steps(
    wanted: Wanted,
    replica: Replica,
    bound: Bound,
    optimizers: Sequence[Optimizer],
    settings: TrainingSettings,
    pace: EmulatedCompute,
) -> tuple[float, list[Snapshot]]:
    """Makes all steps; returns the seconds they took, and snapshots at regular steps."""
    start_s, snapshots = time.perf_counter(), []
    every = math.ceil(wanted.steps / pace.scene.snapshots) if pace.scene.snapshots else 0
    for step, wait_s in zip(range(wanted.steps), pace.waits_s(), strict=False):
        if wait_s:
            time.sleep(wait_s)
        settings.set_lr(optimizers, step, wanted.steps)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = replica.loss(bound.model, replica.batch())
        loss.backward()
        bound.hear(loss)
        for optimizer in optimizers:
            optimizer.step()
        if every and (step + 1) % every == 0:
            flat = nn.utils.parameters_to_vector(_state(replica.model)).detach()
            snapshots.append((time.perf_counter() - start_s, step + 1, flat))
    return time.perf_counter() - start_s, snapshots


def _result(
    wanted: Wanted,
    replica: Replica,
    seconds: float,
    snapshots: list[Snapshot],
    facts: dict[str, Any],
    transport: Transport,
) -> Trial:
    rank_0 = transport.rank == 0
    metric = _finite(replica.judge()) if rank_0 else None
    means = [(t, s, _mean_model(x, transport)) for t, s, x in snapshots]
    curve = tuple((t, s, _judge(replica, x)) for t, s, x in means) if rank_0 else ()
    everyones = [json.loads(text) for text in transport.exchange(json.dumps(facts | {"s": seconds}).encode())]
    ages = [
        int(age) for other in everyones for age, times in other["staleness"].items() for _ in range(times)
    ]
    return Trial(
        **asdict(wanted),
        metric=metric,
        seconds=max(other["s"] for other in everyones),
        bytes_per_step=_mean([other["sent_bytes"] for other in everyones], wanted.steps),
        exposed_s=tuple(other["exposed_s"] for other in everyones),
        rounds=facts["rounds"],
        skipped=facts["skipped"],
        steps_per_s=statistics.fmean(wanted.steps / other["s"] for other in everyones),
        staleness_mean=statistics.fmean(ages) if ages else None,
        staleness_max=max(ages, default=None),
        curve=curve,
    )


def _mean(values: list[int | None], steps: int) -> float | None:
    return None if None in values else statistics.fmean(v for v in values if v is not None) / steps


def _finite(metric: float) -> float | None:
    return metric if math.isfinite(metric) else None


def _mean_model(mine: Tensor, transport: Transport) -> Tensor:
    """Returns the mean of all workers' models, which `run.finish()` would have made of them; overwrites `mine`."""
    transport.all_reduce(mine).wait()
    return mine.div_(transport.size)


def _state(model: nn.Module) -> list[Tensor]:
    """Returns what a model is judged by: its parameters, and what its normalisation remembers."""
    return [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]


@torch.no_grad()
def _judge(replica: Replica, snapshot: Tensor) -> float | None:
    nn.utils.vector_to_parameters(snapshot, _state(replica.model))
    return _finite(replica.judge())


@contextlib.contextmanager
def _bound(
    wanted: Wanted, replica: Replica, optimizers: Sequence[Optimizer], transport: Transport
) -> Iterator[Bound]:
    """Binds the replica to the others."""
    if wanted.plan in STOCK:
        yield Bound(
            stock(wanted.plan, replica.model), lambda: _stock_account(wanted, replica.model, transport)
        )
        return
    follows_loss = Plan.parse(wanted.plan).sync.follows_loss
    with attach(replica.model, optimizers, wanted.plan, transport=transport) as run:

        def account() -> dict[str, Any]:
            run.finish()
            report = run.report()
            return {name: vars(report)[name] for name in COUNTED}

        yield Bound(replica.model, account, run.report_loss if follows_loss else lambda loss: None)


def stock(plan: str, model: nn.Module) -> nn.Module:
    """Wraps a model in stock DDP as it comes, or in one bucket with the stock PowerSGD hook.

    With several buckets the hook aborts over Gloo: the all-reduces of its callbacks overtake each other, otherwise on
    one rank than on the next.
    """
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    if plan == DDP:
        return nn.parallel.DistributedDataParallel(model)
    wrapped = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=ONE_BUCKET_MB)
    state = powerSGD_hook.PowerSGDState(
        process_group=None, matrix_approximation_rank=4, start_powerSGD_iter=POWERSGD_STARTS_AT
    )
    wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return wrapped


def _stock_account(wanted: Wanted, model: nn.Module, transport: Transport) -> dict[str, Any]:
    """DDP does not tell what it sends: the ring's bytes by formula, and of the hook nothing."""
    numel = sum(p.numel() for p in model.parameters())
    per_step = native_bytes(numel, 4, transport.size, transport.rank)
    sent = wanted.steps * per_step if wanted.plan == DDP else None
    return {"sent_bytes": sent, "exposed_s": None, "rounds": None, "skipped": 0, "staleness": {}}
