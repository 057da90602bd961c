"""One checkpoint for all ranks in a job that loses members while it is gathered: that of those who are left."""

from __future__ import annotations

import itertools
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
]
STEPS, GATHERED_AT = 4, (2,)


class Gathering:
    """A job that gathers twice; a death is replaced at once, if it is to be."""

    def __init__(self, plan: str, victim: int, dies_at: int, *, is_replaced: bool) -> None:
        self.plan, self.saved = plan, dict[str, Any]()
        self.elastic = Elastic(self.train, start=0, dies_at=[])
        self.elastic.lobby.expected = 3
        self.victim = [self.elastic.start(dies_at if number == victim else None) for number in range(3)][
            victim
        ]
        if is_replaced:
            self.elastic.replace(self.victim)

    def train(self, transport: Transport, worker: Worker) -> list[torch.Tensor]:
        with job(transport, self.plan, optimizer=momentum) as j:
            while j.run.step < STEPS:
                if j.run.step in GATHERED_AT:
                    state = j.run.state_dict(gather=True)
                    if state:
                        self.saved[worker.name] = state
                j.step(j.run.step)
            j.run.finish()
            return values(j.model)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_death_leaves_a_checkpoint_of_those_who_are_left(plan: str, victim: int, is_replaced: bool) -> None:
    for dies_at in itertools.count(4, 3):
        gathering = Gathering(plan, victim, dies_at, is_replaced=is_replaced)
        ends = gathering.elastic.join()
        assert all(same(ends[0], end) for end in ends[1:]), dies_at
        assert len(gathering.saved) <= 1 + gathering.victim.is_dead  # it may have died with one in hand
        for state in gathering.saved.values():
            workers = {part["run"]["workers"] for part in state["parts"]}
            assert workers == {len(state["parts"])}, dies_at
            assert len({part["run"]["step"] - part["run"]["lead"] for part in state["parts"]}) == 1
            assert [part["run"]["rank"] for part in state["parts"]] == list(range(len(state["parts"])))
        if not gathering.victim.is_dead:
            assert len(gathering.saved) == 1
            break
