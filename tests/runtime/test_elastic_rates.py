"""Law 12 where learning rates change from step to step: whoever dies, comes or comes back, all have the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, StepLR

from tests.lobby import Elastic, Worker
from tests.runtime.training import Net, data_of, loss_of, momentum, same, values
from tightwire._attach import attach
from tightwire.runtime import Run
from tightwire.runtime.carried import Carried
from tightwire.transport import Transport

End = tuple[list[torch.Tensor], int]
BeforeStep = Callable[[Run, Worker, int], None]


def trainer(plan: str, steps: int, before_step: BeforeStep = lambda run, worker, made: None):  # noqa: ANN201
    """Trains with a rate that each step makes from the one before, so that none may be missed or count twice."""

    def train(transport: Transport, worker: Worker) -> End:
        model = Net()
        optimizer = momentum(model.parameters())
        scheduler = ExponentialLR(optimizer, 0.9)
        with attach(model, optimizer, plan, transport=transport, carry={"rate": scheduler}) as run:
            rank, made = data_of(transport), 0
            while run.step < steps:
                before_step(run, worker, made)
                optimizer.zero_grad()
                loss_of(model, rank, run.step).backward()
                optimizer.step()
                scheduler.step()
                made += 1
            run.finish()
        return values(model), scheduler.last_epoch

    return train


def assert_alike(ends: list[End], steps: int) -> None:
    assert all(same(ends[0][0], parameters) for parameters, _ in ends[1:])
    assert [epoch for _, epoch in ends] == [steps] * len(ends)


@pytest.mark.parametrize(
    "plan",
    [
        "bsp/allreduce:ring",
        "bsp/allreduce:ring/none/dear",
        "delayed:1/allreduce:ring",
        "local:2/allreduce:ring",
        "diloco:4/allreduce:ring/none/streaming:2",
        "bsp/gossip:ring",
    ],
)
@pytest.mark.parametrize("dies_at", [6, 8, 12, 16])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_rates_are_equal_after_a_death_and_with_who_comes_in_that_moment(
    plan: str, dies_at: int, is_replaced: bool
) -> None:
    elastic = Elastic(trainer(plan, 8), start=3, dies_at=[None, dies_at])
    if is_replaced:
        elastic.replace(elastic.workers[1])
    assert_alike(elastic.join(), 8)


@pytest.mark.parametrize("plan", ["local:4/allreduce:ring", "diloco:4/allreduce:ring", "bsp/gossip:ring"])
@pytest.mark.parametrize("dies_at", range(6, 18, 2))
@pytest.mark.parametrize("patient", [0, 2])
def test_survivors_that_train_on_meanwhile_are_at_rates_of_their_own(
    plan: str, dies_at: int, patient: int
) -> None:
    """One is told of a death later than the other, and makes some steps more before they go on together."""
    elastic = Elastic(trainer(plan, 16), start=3, dies_at=[None, dies_at])
    elastic.workers[patient].patience = 2
    assert_alike(elastic.join(), 16)


@pytest.mark.parametrize("plan", ["bsp/allreduce/none/dear", "delayed:1"])
def test_all_let_a_newcomer_in_after_the_same_step_also_who_hears_of_it_sooner(plan: str) -> None:
    def before_step(run: Run, worker: Worker, made: int) -> None:
        if worker is not elastic.workers[0]:
            return
        if made == 0:  # what the others say is here before its step is over, which is not so for them
            optimizer = run._optimizers.members[0]
            optimizer.register_step_pre_hook(lambda *_: time.sleep(0.02))
        if run.step == 3 and len(elastic.workers) == 2:
            elastic.start()
            while not worker.lobby.waiting:
                time.sleep(0.002)
        time.sleep(0.02)

    elastic = Elastic(trainer(plan, 8, before_step), start=2, dies_at=[])
    assert_alike(elastic.join(), 8)


@pytest.mark.parametrize(
    ("plan", "stops_at", "deadline_s"), [("local:2", 7, 10.0), ("local:4", 5, 10.0), ("bsp", 7, 2.0)]
)
def test_who_was_stopped_and_goes_on_has_the_rate_of_the_others(
    plan: str, stops_at: int, deadline_s: float
) -> None:
    """It takes up their scheduler in the midst of a step, after which its own loop steps that."""

    def before_step(run: Run, worker: Worker, made: int) -> None:
        lobby = worker.lobby
        if worker is elastic.workers[1]:
            if made == stops_at:
                with lobby.changed:
                    lobby.living.discard(worker.name)
                is_stopped.set()
                goes_on.wait()
            return
        worker.silent = lambda: [1] if lobby.number == 1 and is_stopped.is_set() else []
        if worker is elastic.workers[0] and run.step == 14:
            goes_on.set()
            while not lobby.waiting:
                time.sleep(0.002)

    is_stopped, goes_on = threading.Event(), threading.Event()
    elastic = Elastic(trainer(plan, 24, before_step), start=0, dies_at=[])
    elastic.lobby.deadline_s, elastic.lobby.expected = deadline_s, 3
    for _ in range(3):
        elastic.start()
    assert_alike(elastic.join(), 24)
    assert elastic.lobby.number == 3


@pytest.mark.parametrize("dies_at", [6, 11, 16])
def test_a_death_leaves_gradients_to_accumulate(dies_at: int) -> None:
    """The forward pass that notices the death is inside `accumulate`, under an engine that others replace."""

    def train(transport: Transport, worker: Worker) -> tuple[list[torch.Tensor], int]:
        model = Net()
        optimizer = momentum(model.parameters())
        with attach(model, optimizer, "bsp/allreduce:ring/none/dear", transport=transport) as run:
            rank = data_of(transport)
            while run.step < 8:
                optimizer.zero_grad()
                with run.accumulate():
                    loss_of(model, rank, 2 * run.step).backward()
                loss_of(model, rank, 2 * run.step + 1).backward()
                optimizer.step()
            run.finish()
        return values(model), run.report().rounds

    ends = Elastic(train, start=3, dies_at=[None, dies_at]).join()
    assert same(ends[0][0], ends[1][0])
    assert all(rounds in (8, 9) for _, rounds in ends)  # one may have been begun twice


@pytest.mark.parametrize("plan", ["bsp/allreduce:ring", "bsp/allreduce:ring/none/dear"])
@pytest.mark.parametrize("dies_at", [6, 8, 12])
@pytest.mark.parametrize("comes_at", [5, 6, 7])
def test_a_scaler_outlives_a_death_and_a_newcomer_has_the_scale_of_the_others(
    plan: str, dies_at: int, comes_at: int
) -> None:
    """A step without gradients would end in the scaler; means are of gradients that all scale alike."""

    def train(transport: Transport, worker: Worker) -> tuple[list[torch.Tensor], float]:
        model = Net()
        optimizer = momentum(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)  # type: ignore[attr-defined]
        with attach(model, optimizer, plan, transport=transport, scaler=scaler) as run:
            rank = data_of(transport)
            while run.step < 12:
                if worker is elastic.workers[0] and run.step == comes_at and len(elastic.workers) == 3:
                    elastic.start()
                    while not worker.lobby.waiting:
                        time.sleep(0.002)
                optimizer.zero_grad()
                scaler.scale(loss_of(model, rank, run.step)).backward()
                scaler.step(optimizer)
                scaler.update()
            run.finish()
        return values(model), scaler.get_scale()

    elastic = Elastic(train, start=3, dies_at=[None, dies_at])
    ends = elastic.join()
    assert len(ends) == 3
    assert all(same(ends[0][0], parameters) for parameters, _ in ends[1:])
    assert {scale for _, scale in ends} == {8.0 * 2**4}


@pytest.mark.parametrize("plan", ["bsp/allreduce:ring", "bsp/allreduce:ring/none/dear", "bsp/ps"])
@pytest.mark.parametrize(("inf_at", "dies_at"), [(0, 6), (1, 11), (1, 13), (2, 16), (2, 18)])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_who_lost_a_round_with_an_inf_has_the_scale_and_the_rate_of_those_who_found_it(
    plan: str, inf_at: int, dies_at: int, is_replaced: bool
) -> None:
    """A scaler leaves out the step there, and so must whoever is given the outcome; the loop its scheduler's."""

    def train(transport: Transport, worker: Worker) -> tuple[list[torch.Tensor], float, int, int]:
        model = Net()
        optimizer = momentum(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)  # type: ignore[attr-defined]
        scheduler, made = ExponentialLR(optimizer, 0.9), 0
        carried = {"rate": scheduler}
        with attach(model, optimizer, plan, transport=transport, scaler=scaler, carry=carried) as run:
            rank = data_of(transport)
            while run.step < 8:
                optimizer.zero_grad()
                loss = loss_of(model, rank, run.step)
                step = run.step
                scaler.scale(loss * float("inf") if made == inf_at and rank < 3 else loss).backward()
                scaler.step(optimizer)
                scaler.update()
                if run.step > step:
                    scheduler.step()
                made += 1
            run.finish()
        return values(model), scaler.get_scale(), scaler.state_dict()["_growth_tracker"], scheduler.last_epoch

    elastic = Elastic(train, start=3, dies_at=[None, dies_at])
    if is_replaced:
        elastic.replace(elastic.workers[1])
    ends = elastic.join()
    assert all(same(ends[0][0], end[0]) for end in ends[1:])
    assert len({end[1:] for end in ends}) == 1, [end[1:] for end in ends]


def scheduled(make: Callable[[torch.optim.Optimizer], LRScheduler]) -> tuple[Any, Any, Carried]:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = make(optimizer)
    return optimizer, scheduler, Carried({"rate": scheduler})


@pytest.mark.parametrize("loaded", [0, 100])
@pytest.mark.parametrize("often", [1, 3])
@pytest.mark.parametrize("skips", [set[int](), {2, 3}])
def test_a_scheduler_is_stepped_for_a_newcomer_if_it_is_after_every_step(
    loaded: int, often: int, skips: set[int]
) -> None:
    """Also one that goes on from a checkpoint, or where a GradScaler left out steps; not one that counts epochs."""
    optimizer, scheduler, _ = scheduled(lambda o: StepLR(o, 7))
    scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": loaded})
    source, step = Carried({"rate": scheduler}), 0
    for pass_ in range(1, 12):
        if pass_ not in skips:
            optimizer.step()
            step += 1
            _, other, newcomer = scheduled(lambda o: StepLR(o, 7))
            _, within, comes_back = scheduled(lambda o: StepLR(o, 7))
            newcomer.load_state_dict(state := source.state_dict(step), step)
            newcomer.catch_up(is_within=False)
            comes_back.load_state_dict(state, step)
            comes_back.catch_up(is_within=True)
            source.note_step(step)
            assert within.last_epoch == scheduler.last_epoch
            if step > 2:
                assert other.last_epoch == scheduler.last_epoch + (often == 1)
        if pass_ % often == 0:
            scheduler.step()
