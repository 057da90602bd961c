"""Changes of plan: what is carried over; and in elastic jobs, that all turn alike, wherever a member is lost."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.lobby import Elastic, Worker
from tests.runtime.training import (
    Job,
    MakeOptimizer,
    adam,
    assert_close,
    job,
    momentum,
    plain,
    same,
    train_all,
    values,
)
from tightwire.errors import PeerError
from tightwire.plan import Phases, Plan
from tightwire.runtime import buffers, course, in_force
from tightwire.runtime.engines.server import ServerEngine
from tightwire.runtime.meeting import News, Told
from tightwire.transport import Transport, run_threads

Train = Callable[[Transport, Worker], list[torch.Tensor]]


def trainer(plan: str) -> Train:
    def train(transport: Transport, worker: Worker) -> list[torch.Tensor]:
        with job(transport, plan, optimizer=momentum) as j:
            while j.run.step < 10:
                assert j.run.plan == Phases.parse(plan).at(j.run.step + 1), (worker.name, j.run.step)
                j.step(j.run.step)
            j.run.finish()
            return values(j.model)

    return train


def is_worker(number: int) -> bool:
    return threading.current_thread().name == f"worker {number}"


def lose(elastic: Elastic, number: int) -> PeerError:
    """Has a worker die, and returns what another hears of it."""
    elastic.workers[number].die()
    return PeerError(f"rank {number} died.", [number])


@pytest.mark.parametrize(
    "plan", ["local:3@6~bsp", "bsp@4~local:2", "acco@4~bsp", "local:2@4~bsp/gossip:ring"]
)
def test_who_loses_the_last_word_of_a_meeting_turns_with_those_who_heard_it(
    plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 1 hears of the death of 2 before the end of the meeting, after which 0 and 3 have gone on."""
    meet = course.meet

    def meet_and_lose(transport: Transport, news: News) -> Told:
        told = meet(transport, news)
        if news.why == "turn" and is_worker(1) and not elastic.workers[2].is_dead:
            raise lose(elastic, 2)
        return told

    monkeypatch.setattr(course, "meet", meet_and_lose)
    elastic = Elastic(trainer(plan), start=4, dies_at=[])
    ends = elastic.join()
    assert len(ends) == 3
    assert all(same(ends[0], end) for end in ends[1:])


def test_who_loses_somebody_before_it_has_the_states_that_it_lacks_lacks_them_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Worker 1 hears of the death of 3 before it has what optimizers remember, and of that of 2 while it takes it."""
    equalise, build = in_force.make_states_equal, in_force.build_engine
    lacks = threading.Event()

    def make_equal_and_lose(transport: Transport, optimizers: Any, parameters: Any, steps: int) -> None:
        mine = is_worker(1) and not elastic.workers[3].is_dead
        before = (
            {n: copy.deepcopy(dict(optimizers.state_of(p))) for n, p in parameters.items()} if mine else {}
        )
        equalise(transport, optimizers, parameters, steps)
        for name, state in before.items():
            optimizers.remember(parameters[name], state)
        if mine:
            lacks.set()
            raise lose(elastic, 3)

    def lose_and_build(parameters: Any, plan: Plan, context: Any) -> Any:
        if lacks.is_set() and is_worker(1) and not elastic.workers[2].is_dead:
            raise lose(elastic, 2)
        return build(parameters, plan, context)

    monkeypatch.setattr(in_force, "make_states_equal", make_equal_and_lose)
    monkeypatch.setattr(in_force, "build_engine", lose_and_build)
    elastic = Elastic(trainer("local:3@6~bsp"), start=4, dies_at=[])
    one, other = elastic.join()
    assert same(one, other)


@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize(
    "plan", ["ssp:0/ps@4~bsp", "bsp@3~ssp:0/ps@6~bsp", "ssp:0/ps@4~ssp:0/ps:shards=1@6~bsp"]
)
def test_what_servers_remember_of_parameters_goes_on_without_them(
    plan: str, optimizer: MakeOptimizer
) -> None:
    for trained in train_all(3, plan, steps=8, optimizer=optimizer):
        assert_close(trained.parameters, plain(3, steps=8, optimizer=optimizer))


@pytest.mark.parametrize(
    "first",
    [
        "local:2",
        "diloco:2",
        "easgd:2",
        "bsp/gossip:ring",
        "delayed:1",
        "ssp:0/ps",
        "asp/ps",
        "async-diloco:2/ps",
    ],
)
def test_a_checkpoint_of_a_later_phase_is_what_training_goes_on_from(first: str) -> None:
    def train(transport: Transport) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        with job(transport, f"{first}@3~bsp", optimizer=momentum) as j:
            for step in range(8):
                if step == 5:
                    kept = copy.deepcopy((j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict()))
                j.step(step)
            whole = values(j.model)
        with job(transport, f"{first}@3~bsp", optimizer=momentum) as j:
            j.model.load_state_dict(kept[0])
            j.optimizer.load_state_dict(kept[1])
            j.run.load_state_dict(kept[2])
            for step in range(5, 8):
                j.step(step)
            return whole, values(j.model)

    for whole, resumed in run_threads(3, train, deadline_s=20):
        assert same(whole, resumed)


@pytest.mark.parametrize("read", ["state_dict", "give_back"])
@pytest.mark.parametrize("plan", ["ssp:0/ps@5~local:2", "asp/ps@5~bsp", "ssp:0/ps@5~ssp:0/ps:shards=2"])
def test_a_death_after_the_last_meeting_with_servers_ends_no_phase_with_an_error(
    plan: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 1 hears of it while it reads what its engine remembers, which takes a word of every server."""
    reading = getattr(ServerEngine, read)

    def lose_and_read(engine: ServerEngine) -> Any:
        if is_worker(1) and not elastic.workers[2].is_dead:
            raise lose(elastic, 2)
        return reading(engine)

    monkeypatch.setattr(ServerEngine, read, lose_and_read)
    elastic = Elastic(trainer(plan), start=4, dies_at=[])
    ends = elastic.join()
    assert len(ends) == 3
    assert all(same(ends[0], end) for end in ends[1:])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ssp:0/ps", "ssp:0/ps:shards=2"),
        ("asp/ps:shards=1", "asp/ps"),
        ("async-diloco:2/ps", "async-diloco:2/ps:shards=1"),
        ("local:2", "local:2/gossip:ring"),
        ("local:2/gossip:ring", "local:2"),
    ],
)
def test_what_an_engine_remembers_is_carried_over_by_all_or_by_none(before: str, after: str) -> None:
    """Else those who cannot take it up, and those who could, count on from unlike rounds."""

    def train(transport: Transport) -> list[torch.Tensor]:
        with job(transport, before, optimizer=momentum) as j:
            for step in range(8):
                j.step(step)
                if step == 4:
                    j.run.adopt(Plan.parse(after))
            j.run.finish()
            return values(j.model)

    ends = run_threads(3, train, deadline_s=20)
    assert all(same(ends[0], end) for end in ends[1:])


class Counted(torch.nn.Linear):
    """A model with a buffer, which its passes change."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += x.mean().detach()
        return super().forward(x)


def counting(plan: str, steps: tuple[int, ...], ends: int = 1) -> Train:
    """Has each worker make so many steps, and as many again after all are finished."""

    def train(transport: Transport, worker: Worker) -> list[torch.Tensor]:
        model = Counted()
        with job(transport, plan, model=model, optimizer=momentum, buffers="every-step") as j:
            for end in range(1, ends + 1):
                while j.run.step < end * steps[int(worker.name.split()[-1]) % len(steps)]:
                    j.step(j.run.step)
                j.run.finish()
        return [*values(model), model.passes]

    return train


@pytest.mark.parametrize("ends", [1, 2])
@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_who_loses_somebody_while_buffers_are_made_equal_at_the_end_ends_with_the_others(
    moment: str, ends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 1 does before the last copy, before all have it, or after, when 0 may be gone or train on."""
    conclude, copied = course.Course._conclude, buffers.BufferSync.copy
    is_ending = threading.local()

    def strikes(at: str) -> bool:
        return at == moment and is_worker(1) and not elastic.workers[2].is_dead

    def conclude_and_lose(self: course.Course, told: Told) -> None:
        if strikes("before"):
            raise lose(elastic, 2)
        is_ending.now = True
        conclude(self, told)
        is_ending.now = False
        if strikes("after"):
            raise lose(elastic, 2)

    def copy_and_lose(self: buffers.BufferSync, source: int) -> None:
        copied(self, source)
        if getattr(is_ending, "now", False) and strikes("within"):
            raise lose(elastic, 2)

    monkeypatch.setattr(course.Course, "_conclude", conclude_and_lose)
    monkeypatch.setattr(buffers.BufferSync, "copy", copy_and_lose)
    elastic = Elastic(counting("bsp", (4,), ends), start=3, dies_at=[])
    one, other = elastic.join()
    assert same(one, other)


@pytest.mark.parametrize("steps", [(3,), (1, 3)])
@pytest.mark.parametrize("plan", ["bsp", "local:2", "delayed:1", "bsp/allreduce/none/dear"])
def test_wherever_a_worker_dies_those_left_end_with_equal_buffers(plan: str, steps: tuple[int, ...]) -> None:
    """Worker 0, whose buffers the others copy, at every send of its own after the first."""
    for dies_at in itertools.count(2):
        elastic = Elastic(counting(plan, steps), start=3, dies_at=[dies_at])
        ends = elastic.join()
        assert all(same(ends[0], end) for end in ends[1:]), dies_at
        if not elastic.workers[0].is_dead:
            break


@pytest.mark.parametrize("is_elastic", [False, True])
@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize(
    ("plan", "adopted", "ends"),
    [
        ("local:2@4~bsp", "local:3", "local:3"),
        ("bsp@5~local:2", "bsp/allreduce:ring", "bsp/allreduce:ring"),
        ("bsp@4~local:2@7~bsp/allreduce:ring", None, "bsp/allreduce:ring"),
        ("bsp@4~local:2@8~bsp/allreduce:ring", None, "bsp/allreduce:ring"),
    ],
)
def test_who_was_finished_trains_on_under_what_the_others_have_come_to(
    plan: str, adopted: str | None, ends: str, is_resumed: bool, is_elastic: bool
) -> None:
    """Worker 0 makes one step of 6, and then as many as the other: no phase of before takes it away from that one."""

    def train(transport: Transport, worker: Worker | None = None) -> tuple[list[torch.Tensor], str, str]:
        with job(transport, plan, optimizer=momentum) as j:
            for step in range((1, 6)[j.rank]):
                j.step(step)
                if step == 2 and adopted is not None:
                    j.run.adopt(Plan.parse(adopted))
            j.run.finish()
            kept = copy.deepcopy((j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict()))
            go_on(j)
        if is_resumed:
            with job(transport, adopted or plan, optimizer=momentum) as j:
                j.model.load_state_dict(kept[0])
                j.optimizer.load_state_dict(kept[1])
                j.run.load_state_dict(kept[2])
                go_on(j)
        return values(j.model), j.run.report().plan, str(j.run.plan)

    def go_on(j: Job) -> None:
        seen = []
        for step in range(6, 10):
            seen.append(str(j.run.plan))
            j.step(step)
        j.run.finish()
        passed[j.rank] = seen

    passed = dict[int, list[str]]()
    if is_elastic:
        mine, other = Elastic(train, start=2, dies_at=[]).join()
    else:
        mine, other = run_threads(2, train, deadline_s=20)
    assert same(mine[0], other[0])
    assert mine[1:] == other[1:] == (adopted or plan, ends)
    assert passed[0] == passed[1]
