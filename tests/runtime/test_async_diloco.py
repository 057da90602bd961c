"""Asynchronous DiLoCo: changes are applied when they come, with momentum once per N of them; none is lost."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws.test_syncs import Quadratic, copied
from tests.runtime.training import Net, adam, assert_close, job, plain, same, sgd, values
from tightwire.architecture.server.nesterov import DelayedNesterov
from tightwire.errors import AttachError, PlanError
from tightwire.plan import Plan
from tightwire.sync import AsyncDiLoCo
from tightwire.transport import Single, Transport, run_threads

PLANS = (
    "async-diloco:3/ps",
    "async-diloco:2,activation=0.2/ps:shards=2/int8+ef",
    "async-diloco:2,dynamic=true/ps:servers=1/bf16/fusion:64",
    "async-diloco:1/ps:servers=1,mix=true/topk:0.2+ef",
)


@pytest.mark.parametrize("activation", [0.0, 0.25])
def test_the_outer_step_is_the_papers(activation: float) -> None:
    """Algorithm 3 in plain numbers, for N = 3."""
    n, c, beta, lr = 3, activation, 0.9, 0.7
    x = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = DelayedNesterov([x], lr=lr, momentum=beta, delay=n, activation=c)
    value, m, gathered = 1.0, 0.0, 0.0
    for t, g in enumerate([0.5, -0.2, 0.3, 0.1, 0.7, -0.4, 0.2]):
        gathered += g
        share = c
        if (t + 1) % n == 0:
            m, gathered, share = beta * m + gathered / n, 0.0, 1 - c * n + c
        value -= lr * (share * beta * m + g / n)
        x.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        assert x.item() == pytest.approx(value, abs=1e-12)


def work(transport: Transport, plan: str, *, steps: int = 7, delays: bool = False) -> list[Tensor] | None:
    draw = random.Random(transport.rank)
    with job(transport, plan, optimizer=adam) as j:
        for step in range(0 if j.run.is_server else steps + 2 * transport.rank):
            time.sleep(draw.choice((0.0, 0.01)) if delays else 0.0)
            j.step(step, factor=float("nan") if delays and step == 4 and transport.rank == 1 else 1.0)
            if delays and step == 3:
                with j.run.evaluating():
                    j.seen[-1] = values(j.model)
    report = j.run.report()
    assert report.sent_bytes == report.planned_bytes > 0
    assert all(p.isfinite().all() for p in values(j.model))
    if j.run.is_server:
        return None
    assert report.skipped == (delays and transport.rank == 1)
    assert sum(report.staleness.values()) >= steps // 3
    return [*(j.seen[3] if delays else ()), *values(j.model)]


@pytest.mark.parametrize("delays", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_traffic_and_agreement(plan: str, delays: bool) -> None:
    """Laws 2, 8 and 9, with workers of unlike speed and unlike numbers of steps, evaluated on the way."""
    ended = run_threads(4, lambda t: work(t, plan, delays=delays), deadline_s=20)
    results = [values for values in ended if values is not None]
    assert all(same(parameters, results[0]) for parameters in results)


def test_a_world_of_one_is_plain_pytorch() -> None:
    with job(Single(), "async-diloco:3/ps", optimizer=adam) as j:
        for step in range(3):
            j.step(step)
    assert same(values(j.model), plain(1, steps=3, optimizer=adam))


def test_changes_from_one_start_make_the_step_of_diloco() -> None:
    """Steps fewer than a round: all start alike, and the last one is never lost."""

    def worker(transport: Transport) -> list[list[Tensor]]:
        ends = []
        for plan in ("diloco:9", "async-diloco:9/ps", "async-diloco:9/ps:shards=1"):
            with job(transport, plan, optimizer=adam) as j:
                for step in range(5):
                    j.step(step)
            ends.append(values(j.model))
        return ends

    for expected, *found in run_threads(4, worker, deadline_s=20):
        for other in found:
            assert_close(other, expected)


@pytest.mark.parametrize("cut", [2, 3, 5])
def test_resuming_is_continuing(cut: int) -> None:
    """Law 4, bit for bit: one worker at a time sends, in the order of ranks."""
    plan = "async-diloco:3/ps/int8+ef"

    def in_turn(transport: Transport, j: Any, step: int) -> None:
        for rank in range(transport.size):
            if rank == transport.rank:
                j.step(step)
            transport.barrier()

    def worker(transport: Transport) -> None:
        ends = []
        for resumed in (False, True):
            with job(transport, plan, optimizer=adam) as j:
                for step in range(cut):
                    in_turn(transport, j, step)
                saved = [copied(s) for s in (j.optimizer.state_dict(), j.run.state_dict())]
                if not resumed:
                    for step in range(cut, 9):
                        in_turn(transport, j, step)
            if resumed:
                with job(transport, plan, model=Net(seed=77), optimizer=adam) as j:
                    j.optimizer.load_state_dict(saved[0])
                    j.run.load_state_dict(saved[1])
                    for step in range(cut, 9):
                        in_turn(transport, j, step)
            ends.append(values(j.model))
        assert same(*ends)

    run_threads(2, worker, deadline_s=20)


def test_it_finds_the_minimum_of_the_sum() -> None:
    def worker(transport: Transport) -> float:
        model = Quadratic(target=[1.0, 3.0][transport.rank])
        with job(transport, "async-diloco:4,outer_momentum=0.5/ps:shards=1", model=model, optimizer=sgd) as j:
            for _ in range(80):
                j.optimizer.zero_grad()
                model().backward()
                j.optimizer.step()
                transport.barrier()  # so that neither is left alone at the end, when it would go to its own
        return model.x.item()

    for x in run_threads(2, worker, deadline_s=20):
        assert x == pytest.approx(2.0, abs=0.5)


def test_slower_workers_make_fewer_steps() -> None:
    def worker(transport: Transport) -> int:
        with job(transport, "async-diloco:8,dynamic=true/ps") as j:
            for step in range(40 if transport.rank == 0 else 16):
                time.sleep(0.002 if transport.rank == 0 else 0.02)
                j.step(step)
            return j.run.report().rounds

    fast, slow = run_threads(2, worker, deadline_s=20)
    assert fast <= 40 // 8 + 1
    assert slow >= 4  # 8 steps, then about 1 in each; 2 without


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("async-diloco:0/ps", "at least 1"),
        ("async-diloco:8", "is for a server to say"),
        ("async-diloco:8/gossip:ad-psgd", "is for a server to say|no known"),
        ("async-diloco:8,outer_lr=0/ps", "the outer rate is above 0"),
        ("async-diloco:8,activation=2/ps", "activation is from 0"),
        ("async-diloco:8/ps:hierarchical=true", "each is answered by itself"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.parse(text)


def test_too_much_momentum_is_refused_where_the_workers_are_known() -> None:
    def worker(transport: Transport) -> None:
        with (
            pytest.raises((PlanError, AttachError), match=r"at most 0\.5"),
            job(transport, "async-diloco:8,activation=0.6/ps"),
        ):
            pass

    run_threads(2, worker, deadline_s=20)
    assert AsyncDiLoCo(8, activation=0.5).quorum(2) == 0
