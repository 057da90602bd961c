"""One checkpoint for all ranks in a job that loses members while it is gathered: that of those who are left."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch

from tests.lobby import Elastic, Worker
from tests.runtime.training import job, momentum, same, values
from tightwire.transport import Transport

PLANS = [
    "bsp/allreduce/topk:0.2+ef",
    "bsp/allreduce:ring/none/dear",
    "delayed:1",
    "local:2/allreduce:ring",
    "diloco:2,quorum=0.5,grace=20ms",
    "ssp:0/ps",
]
STEPS = 4


class Gathering:
    """A job that gathers once; a death is replaced at once, if it is to be."""

    def __init__(
        self, plan: str, victim: int, dies_at: int, *, is_replaced: bool, at: int = 2, slow_s: float = 0.0
    ) -> None:
        self.plan, self.at, self.slow_s, self.saved = plan, at, slow_s, dict[str, Any]()
        self.elastic = Elastic(self.train, start=0, dies_at=[])
        self.elastic.lobby.expected = 3
        self.victim = [self.elastic.start(dies_at if number == victim else None) for number in range(3)][
            victim
        ]
        if is_replaced:
            self.elastic.replace(self.victim)

    def train(self, transport: Transport, worker: Worker) -> list[torch.Tensor] | None:
        with job(transport, self.plan, optimizer=momentum) as j:
            if j.run.transport.size == 1 and j.run.step == 0:  # all others had ended
                return None
            while j.run.step < STEPS:
                if j.run.step == self.at:
                    state = j.run.state_dict(gather=True)
                    if state:
                        self.saved[worker.name] = state
                if worker.name == "worker 2":
                    time.sleep(self.slow_s)
                j.step(j.run.step)
            j.run.finish()
            return values(j.model)

    def assert_sound(self) -> None:
        ends = self.elastic.join()
        assert all(same(ends[0], end) for end in ends[1:])
        assert len(self.saved) <= 1 + self.victim.is_dead  # it may have died with one in hand
        for state in self.saved.values():
            workers = {part["run"]["workers"] for part in state["parts"]}
            assert workers == {len(state["parts"])}
            assert len({part["run"]["step"] - part["run"]["lead"] for part in state["parts"]}) == 1
            assert [part["run"]["rank"] for part in state["parts"]] == list(range(len(state["parts"])))
        if not self.victim.is_dead:
            assert len(self.saved) == 1


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_death_leaves_a_checkpoint_of_those_who_are_left(plan: str, victim: int, is_replaced: bool) -> None:
    for dies_at in itertools.count(4, 3):
        gathering = Gathering(plan, victim, dies_at, is_replaced=is_replaced)
        gathering.assert_sound()
        if not gathering.victim.is_dead:
            break


@pytest.mark.parametrize("victim", [0, 1])
def test_a_newcomer_that_begins_at_an_earlier_step_comes_to_it_by_itself(victim: int) -> None:
    """Two wait for the slow one, with whose rounds alone the newcomer begins."""
    for dies_at in itertools.count(12):
        gathering = Gathering(
            "local:1,quorum=0.5,grace=2ms", victim, dies_at, is_replaced=True, at=3, slow_s=0.03
        )
        gathering.assert_sound()
        if not gathering.victim.is_dead:
            break


def test_what_is_gathered_twice_after_one_step_is_there_twice() -> None:
    def train(transport: Transport, worker: Worker) -> list[bool]:
        with job(transport, "local:2") as j:
            gathered = []
            while j.run.step < 6:
                if worker is elastic.workers[0] and j.run.step == 2:
                    elastic.start()
                    while not elastic.lobby.waiting:
                        time.sleep(0.001)
                if j.run.step in (2, 4):
                    gathered += [bool(j.run.state_dict(gather=True)) for _ in range(2)]
                j.step(j.run.step)
            j.run.finish()
        return gathered

    elastic = Elastic(train, start=2, dies_at=[])
    first, second, newcomer = elastic.join()
    assert first == [True] * 4
    assert second == [False] * 4
    assert newcomer == [False] * 2
