"""plan="auto" among members that come and go: one plan on all, whoever is lost or comes before, during and after."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from tests.lobby import Elastic, Worker
from tests.runtime.training import Job, Net, Trained, data_of, job, loss_of, momentum, same, values
from tightwire._attach import attach
from tightwire.cluster import Cluster
from tightwire.errors import AttachError
from tightwire.plan import Plan, PlanFile
from tightwire.planner import STOCK
from tightwire.profile import CodecCost
from tightwire.runtime.first_steps import PROFILE_STEPS, WATCHED
from tightwire.runtime.proof import Proof
from tightwire.transport import Transport

STEPS = 30
RATE = {"bytes_per_s": 1e6}
Before = Callable[[Worker, Job], None]


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretends a wire, which members look at together, and tells among how many; and what codecs take."""
    seen: list[int] = []

    def look(transport: Transport, **more: Any) -> Cluster:
        for _ in range(3):
            transport.exchange(b"how fast")
        if transport.rank == 0:
            seen.append(transport.size)
        return Cluster.uniform(transport.size, RATE["bytes_per_s"], 1e-4)

    def costs(texts: Sequence[str], **more: Any) -> tuple[tuple[CodecCost, ...], float]:
        names = dict.fromkeys(texts)
        return tuple(
            CodecCost(compression=n, encode_s_per_element=1e-9, decode_s_per_element=1e-9) for n in names
        ), 1e-10

    monkeypatch.setattr("tightwire.probe.probe", look)
    monkeypatch.setattr("tightwire.runtime.learnt.probe", look)
    monkeypatch.setattr("tightwire.runtime.shortlist.known_costs", costs)
    monkeypatch.setattr(Proof, "after_step", lambda proof, run: None)  # no step is as slow as that wire
    return seen


def trainer(
    *, steps: int = STEPS, before: Before = lambda worker, j: None, **options: object
) -> Callable[[Transport, Worker], Trained]:
    def train(transport: Transport, worker: Worker) -> Trained:
        with job(transport, "auto", optimizer=momentum, **options) as j:  # type: ignore[arg-type]
            while j.run.step < steps:
                before(worker, j)
                j.run.report_loss(1.0)
                j.step(j.run.step)
            j.run.finish()
            return Trained(values(j.model), j.seen, j.run.report())

    return train


def assert_alike(ends: list[Trained]) -> None:
    first = ends[0].report
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])
    assert [(e.report.plan, e.report.why) for e in ends] == [(first.plan, first.why) for _ in ends]
    assert first.why
    assert first.considered


def wait_for_newcomer(elastic: Elastic, worker: Worker) -> None:
    elastic.start()
    while not worker.lobby.waiting and not worker.knocks():
        time.sleep(0.002)


@pytest.mark.parametrize("allow", ["lossless", "lossy", "stale"])
def test_members_choose_alike(allow: str, looks: list[int]) -> None:
    assert_alike(Elastic(trainer(allow=allow), start=3, dies_at=[]).join())
    assert looks == [3]


@pytest.mark.parametrize("allow", ["lossless", "stale"])
@pytest.mark.parametrize("dies_at", range(0, 60, 4))
def test_a_death_before_during_or_after_the_choice_leaves_one_plan_on_all(dies_at: int, allow: str) -> None:
    elastic = Elastic(trainer(allow=allow), start=3, dies_at=[None, dies_at])
    ends = elastic.join()
    assert len(ends) == 3 - elastic.workers[1].is_dead
    assert_alike(ends)
    assert all(end.report.steps == STEPS for end in ends)


@pytest.mark.parametrize("dies_at", range(3, 93, 5))
@pytest.mark.parametrize("is_replaced", [False, True])
def test_members_meet_after_the_same_step_also_who_lacks_the_last_round(
    dies_at: int, is_replaced: bool
) -> None:
    """Rates change from step to step: else survivors whose round was over or lost were one step behind the others."""

    def train(transport: Transport, worker: Worker) -> tuple[list[torch.Tensor], int]:
        model = Net()
        optimizer = momentum(model.parameters())
        scheduler = ExponentialLR(optimizer, 0.95)
        with attach(model, optimizer, "auto", transport=transport, carry={"rate": scheduler}) as run:
            while run.step < STEPS:
                optimizer.zero_grad()
                loss_of(model, data_of(transport), run.step).backward()
                optimizer.step()
                scheduler.step()
            run.finish()
        return values(model), scheduler.last_epoch

    elastic = Elastic(train, start=3, dies_at=[None, dies_at])
    if is_replaced:
        elastic.replace(elastic.workers[1])
    ends = elastic.join()
    assert all(same(ends[0][0], parameters) for parameters, _ in ends[1:])
    assert [epoch for _, epoch in ends] == [STEPS] * len(ends)


@pytest.mark.parametrize("at", [1, 4, 8, 20])
def test_a_newcomer_trains_by_what_was_chosen_or_is_chosen_with_it(at: int, looks: list[int]) -> None:
    def before(worker: Worker, j: Job) -> None:
        if worker.name == "worker 0" and j.run.step == at:
            assert j.run.is_settled == (at > 15)
            wait_for_newcomer(elastic, worker)

    elastic = Elastic(trainer(before=before), start=3, dies_at=[])
    ends = elastic.join()
    assert len(ends) == 4
    assert_alike(ends)
    assert looks == ([3] if at > 15 else [3, 4])


def test_one_alone_waits_for_others_and_a_plan_is_chosen_anew_for_twice_as_many(looks: list[int]) -> None:
    def before(worker: Worker, j: Job) -> None:
        if worker.name == "worker 0" and j.run.step in (5, 25, 30, 50):
            assert j.run.is_settled == (j.run.step > 5)
            wait_for_newcomer(elastic, worker)

    elastic = Elastic(trainer(steps=80, before=before), start=1, dies_at=[])
    ends = elastic.join()
    assert len(ends) == 5
    assert_alike(ends)
    assert looks == [2, 4]  # and neither for 3, nor for 5


def test_a_worker_whose_data_is_over_keeps_no_search_waiting() -> None:
    def train(transport: Transport, worker: Worker) -> Trained:
        return trainer(steps=3 if worker.name == "worker 1" else STEPS)(transport, worker)

    ends = Elastic(train, start=3, dies_at=[]).join()
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])
    assert ends[0].report.plan == ends[2].report.plan


def test_a_worker_whose_data_is_over_before_the_search_leaves_the_plan_as_it_is(looks: list[int]) -> None:
    def train(transport: Transport, worker: Worker) -> Trained:
        return trainer(steps=0 if worker.name == "worker 1" else STEPS)(transport, worker)

    ends = Elastic(train, start=3, dies_at=[]).join()
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])
    assert looks == []
    assert ends[0].report.plan == str(WATCHED)
    assert "data was over" in ends[0].report.why[0]


def test_what_was_chosen_is_kept_for_the_next_job(tmp_path: pathlib.Path, looks: list[int]) -> None:
    file = tmp_path / "plan.yaml"
    first = Elastic(trainer(keep=file), start=2, dies_at=[]).join()
    assert file.exists()
    again = Elastic(trainer(keep=file, steps=PROFILE_STEPS), start=2, dies_at=[]).join()
    assert {end.report.plan for end in (*first, *again)} == {first[0].report.plan}
    assert looks == [2, 2]  # the second only whether it is the same wire


@pytest.mark.parametrize(
    ("plan", "says"), [("race:40min", "a race, whose trials"), ("bsp/allreduce/none/auto", "schedule auto")]
)
def test_what_is_found_by_trials_is_refused(plan: str, says: str) -> None:
    def train(transport: Transport, worker: Worker) -> None:
        with job(transport, plan):
            pass

    with pytest.raises(AttachError, match=says):
        Elastic(train, start=2, dies_at=[]).join()


def test_a_lossy_plan_is_watched_over_also_after_members_have_changed(tmp_path: pathlib.Path) -> None:
    """The loss is lost from step 60 on; survivors of an earlier death fall back on plain all-reduce, and keep it."""
    file = tmp_path / "plan.yaml"

    def train(transport: Transport, worker: Worker) -> Trained:
        with job(transport, "auto", optimizer=momentum, allow="lossy", keep=file) as j:
            while j.run.step < 140:
                j.run.report_loss(1.0 if j.run.step < 60 else float("inf"))
                j.step(j.run.step)
            j.run.finish()
            return Trained(values(j.model), j.seen, j.run.report())

    RATE["bytes_per_s"] = 1e4
    try:
        ends = Elastic(train, start=3, dies_at=[None, 70]).join()
    finally:
        RATE["bytes_per_s"] = 1e6
    assert len(ends) == 2
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])
    assert all(Plan.parse(end.report.plan) == Plan.parse(STOCK) for end in ends), ends[0].report.plan
    assert PlanFile.read(file).parse() == Plan.parse(STOCK)
