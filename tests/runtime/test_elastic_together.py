"""What all members of an elastic job do together, wherever in it one is lost, and another comes in its place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import pytest
import torch

from tests.lobby import Elastic, Worker
from tests.runtime.training import Job, job, same, values
from tightwire.transport import Transport

Place = Literal["before the step", "after it"]
PLANS = [
    "bsp",
    "bsp/allreduce/none/dear",
    "local:1/allreduce:halving-doubling",
    "local:3/allreduce:ring",
    "diloco:4/allreduce/none/streaming:2",
    "diloco:3,quorum=0.5",
    "local:2,quorum=0.75,grace=2ms",
    "delayed:2",
    "ssp:2/ps",
    "bsp/gossip:ring",
    "local:2/gossip:exponential/choco:topk=0.2",
    "asp/gossip:ad-psgd",
]
STEPS = 9


def evaluate(j: Job) -> None:
    with j.run.evaluating():
        assert all(torch.isfinite(p).all() for p in j.model.parameters())


def save(j: Job) -> None:
    j.run.state_dict()


def nothing(j: Job) -> None:
    pass


class Together:
    """Four workers that do something together after every step, or before it, of which one dies."""

    def __init__(
        self, plan: str, do: Callable[[Job], None], place: Place, dies_at: int, *, is_replaced: bool
    ) -> None:
        self.plan, self.do, self.place = plan, do, place
        self.elastic = Elastic(self.train, start=4, dies_at=[None, dies_at])
        self.victim = self.elastic.workers[1]
        if is_replaced:
            self.elastic.replace(self.victim)

    def train(self, transport: Transport, worker: Worker) -> list[torch.Tensor] | None:
        with job(transport, self.plan) as j:
            came_late = j.run.step == STEPS
            if j.run.transport.size == 1 and not j.run.step:  # all others had ended
                return None
            while j.run.step < STEPS:
                if self.place == "before the step":
                    self.do(j)
                j.step(j.run.step)
                if self.place == "after it":
                    self.do(j)
            j.run.finish()
            return None if came_late else values(j.model)

    def assert_sound(self) -> None:
        ends = self.elastic.join(timeout_s=10.0)
        assert len(ends) >= 3
        if "ssp" not in self.plan and "asp" not in self.plan:
            assert all(same(ends[0], end) for end in ends[1:])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("place", ["before the step", "after it"])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_nobody_waits_in_an_evaluation_for_those_who_are_past_it(
    plan: str, place: Place, is_replaced: bool
) -> None:
    for dies_at in range(2, 35, 3):
        Together(plan, evaluate, place, dies_at, is_replaced=is_replaced).assert_sound()


@pytest.mark.parametrize("plan", ["diloco:3,quorum=0.5", "local:2,quorum=0.75,grace=2ms"])
@pytest.mark.parametrize("place", ["before the step", "after it"])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_nobody_waits_to_save_for_those_who_are_past_it(plan: str, place: Place, is_replaced: bool) -> None:
    for dies_at in range(2, 35, 3):
        Together(plan, save, place, dies_at, is_replaced=is_replaced).assert_sound()


@pytest.mark.parametrize(
    "plan", ["diloco:4/allreduce/none/streaming:2", "local:5/allreduce/none/streaming:3"]
)
def test_a_death_in_the_rounds_in_which_all_end_is_survived(plan: str) -> None:
    for dies_at in itertools.count(20):
        together = Together(plan, nothing, "after it", dies_at, is_replaced=False)
        together.assert_sound()
        if not together.victim.is_dead:
            break
