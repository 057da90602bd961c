"""Rounds that end with a quorum: who is late is not waited for, and counts in the next round; nobody is lost."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch
from torch import Tensor

from tests.runtime.training import Net, job, same, sgd, values
from tightwire._attach import attach
from tightwire.errors import PeerError, PlanError
from tightwire.plan import Plan
from tightwire.sync import DiLoCo
from tightwire.transport import Transport, run_threads
from tightwire.units import Seconds


class Slope(torch.nn.Module):
    """A loss whose gradient is a constant of the worker's own, so that means can be followed by hand."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(1))
        self.slope = slope

    def forward(self) -> Tensor:
        return self.x.sum() * self.slope


def test_a_late_change_enters_the_next_round_by_its_steps() -> None:
    """Two steps per round at rate 1; rank 1 comes after round 1, and goes on while round 2 is to begin."""
    past, handed = threading.Event(), threading.Event()

    def worker(transport: Transport) -> tuple[list[float], dict[int, int]]:
        model, seen = Slope(slope=[-1.0, -5.0][transport.rank]), []
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with attach(model, optimizer, "local:2,quorum=0.5", transport=transport) as run:
            for step in range(4 if transport.rank == 0 else 3):
                if transport.rank == 1 and step == 1:
                    assert past.wait(20)
                if transport.rank == 0 and step == 3:
                    assert handed.wait(20)
                optimizer.zero_grad()
                model().backward()
                optimizer.step()
                seen.append(model.x.item())
                if transport.rank == 0 and step == 1:
                    past.set()
                if transport.rank == 1 and step == 2:
                    handed.set()
        report = run.report()
        assert report.sent_bytes == report.planned_bytes > 0
        return [*seen, model.x.item()], dict(report.staleness)

    (first, on_time), (second, late) = run_threads(2, worker, deadline_s=20)
    # Round 1 is rank 0's alone: 2. Rank 1 has changed 10 by then, begins again from 2 + 10 and hands that in.
    assert first[:2] == [1.0, 2.0]
    assert second[:2] == [5.0, 12.0]
    # Round 2 holds 2 of rank 0 and 10 of rank 1, two steps each: 2 + 6. The last one holds the fifth of one step.
    assert first[3] == 8.0
    assert second[2] in (17.0, 13.0)  # before round 2 has landed, or after it
    assert first[4] == second[3] == 8.0 + 5.0
    assert on_time == {0: 2}
    assert late == {0: 1, 1: 1}


@pytest.mark.parametrize("compression", ["none", "int8+ef"])
def test_random_delays_part_nobody(compression: str) -> None:
    def worker(transport: Transport) -> list[Tensor]:
        draw = random.Random(transport.rank)
        with job(transport, f"diloco:2,quorum=0.5,grace=2ms/allreduce/{compression}") as j:
            for step in range(12 + transport.rank):
                time.sleep(draw.choice((0.0, 0.0, 0.02)))
                j.step(step)
                if step == 7:
                    with j.run.evaluating():
                        j.seen.append(values(j.model))
                    state = j.run.state_dict()
            j.run.load_state_dict(state)
            j.step(99)
            if compression == "none":
                j.run.adopt(Plan.parse("diloco:3,quorum=0.75"))
            for step in range(3):
                j.step(100 + step)
        report = j.run.report()
        assert report.sent_bytes == report.planned_bytes
        assert sum(report.staleness.values()) > 0
        return [*j.seen[8], *values(j.model)]

    results = run_threads(4, worker, deadline_s=20)
    assert all(same(parameters, results[0]) for parameters in results)
    assert all(p.isfinite().all() for p in results[0])


def test_who_never_comes_is_named() -> None:
    gone = threading.Event()

    def train_until_it_ends(transport: Transport) -> None:
        model = Net(seed=0)
        optimizer = sgd(model.parameters())
        with attach(model, optimizer, "local:1,quorum=0.5", transport=transport):
            while transport.rank == 0:
                optimizer.zero_grad()
                model(torch.ones(1, 5)).sum().backward()
                optimizer.step()
                time.sleep(0.01)
            gone.wait(20)
            raise PeerError("the end of this test", [1])

    def worker(transport: Transport) -> str:
        with pytest.raises(PeerError) as caught:
            train_until_it_ends(transport)
        gone.set()
        return str(caught.value)

    said = run_threads(2, worker, deadline_s=0.5)[0]
    assert said.startswith(
        "rank 1 handed in nothing for 0.5 s while rounds of local:1,quorum=0.5 went on without."
    )


def test_texts() -> None:
    plan = Plan.parse("diloco:30,quorum=0.75,grace=5s")
    assert plan.sync == DiLoCo(30, quorum=0.75, grace=Seconds(5))
    assert str(plan.sync) == "diloco:30,quorum=0.75,grace=5s"
    assert str(DiLoCo(30, quorum=0.75, grace=Seconds(0.3)).grace) == "0.3s"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("diloco:30,grace=5s", "grace is for how long a quorum waits"),
        ("diloco:30,quorum=0.75,grace=5", "has no unit of time; write 5s or 5ms"),
        ("diloco:30,quorum=0", "above 0 and at most 1"),
        ("diloco:30,quorum=1.5", "above 0 and at most 1"),
        ("diloco:30,quorum=nan", "above 0 and at most 1"),
        ("diloco:30,quorum=0.75,overlap=30", "leave out overlap, state and periods, or quorum"),
        ("local:30,quorum=0.75,state=averaged", "leave out overlap, state and periods, or quorum"),
        ("local:30,quorum=0.75,momenta=2", "leave out overlap, state and periods, or quorum"),
        ("local:30,quorum=0.75,doubling=2", "in rounds of one length"),
        ("diloco:30,quorum=0.75/allreduce/none/streaming:2", "has one per fragment"),
        ("local:30,quorum=0.75/gossip", "nobody waits for more than its neighbours"),
        ("local:30,quorum=0.75/allreduce/median", "would take them for what workers say"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.parse(text)
