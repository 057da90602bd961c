"""A model that is loaded after it was attached is what all begin with, whatever an engine had copied of it before."""

from __future__ import annotations

import copy
import functools

import pytest
from torch import Tensor

from tests.lobby import Elastic, Worker
from tests.runtime.training import Net, assert_close, job, loss_of, momentum, same, values
from tightwire._attach import attach
from tightwire.errors import AttachError
from tightwire.transport import Transport, run_threads

PLANS = [
    "bsp",
    "delayed:1",
    "local:2/allreduce/int8",
    "diloco:2",
    "diloco:2,overlap=1",
    "diloco:2,quorum=1",
    "easgd:2",
    "slowmo:2",
    "gaia:0.1",
    "bsp/gossip:ring",
    "bsp/gossip:ring/int8+choco",
    "ssp:0/ps",
    "ssp:0/ps:shards=1/int8+ef",
]


@pytest.mark.parametrize("plan", PLANS)
def test_loading_after_attaching_is_loading_before(plan: str) -> None:
    def worker(transport: Transport, is_after: bool) -> list[Tensor]:
        model, loaded = Net(seed=transport.rank), Net(seed=9).state_dict()
        if not is_after:
            model.load_state_dict(loaded)
        with job(transport, plan, model=model, optimizer=momentum) as j:
            if is_after:
                j.model.load_state_dict(loaded)
            for step in range(5):
                j.step(step)
        return values(j.model)

    before, after = (
        run_threads(3, functools.partial(worker, is_after=is_after), deadline_s=20)
        for is_after in (False, True)
    )
    assert_close(before[0], after[0])


@pytest.mark.parametrize("plan", PLANS)
def test_what_was_loaded_is_evaluated_and_kept(plan: str) -> None:
    def worker(transport: Transport, evaluates: bool) -> None:
        loaded = Net(seed=9)
        with job(transport, plan, optimizer=momentum) as j:
            j.model.load_state_dict(loaded.state_dict())
            if evaluates:
                with j.run.evaluating():
                    assert_close(values(j.model), values(loaded))
        assert_close(values(j.model), values(loaded))

    for evaluates in (False, True):
        run_threads(2, functools.partial(worker, evaluates=evaluates), deadline_s=20)


@pytest.mark.parametrize("plan", ["local:2/allreduce/int8", "ssp:0/ps"])
def test_ranks_that_loaded_unlike_models_begin_with_that_of_rank_0(plan: str) -> None:
    """As by attaching."""

    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, plan, optimizer=momentum) as j:
            j.model.load_state_dict(Net(seed=9 + transport.rank).state_dict())
            with j.run.evaluating():
                assert_close(values(j.model), values(Net(seed=9)))
            j.step(0)
        return values(j.model)

    first, second = run_threads(2, worker, deadline_s=20)
    assert same(first, second)


def test_servers_apart_do_not_hear_of_what_workers_load() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp/ps:servers=1") as j:
            j.model.load_state_dict(Net(seed=9).state_dict())
            if not j.run.is_server:
                with pytest.raises(AttachError, match="load first and attach then"):
                    j.step(0)

    run_threads(3, worker, deadline_s=20)


@pytest.mark.parametrize(("plan", "refused"), [("bsp", False), ("local:2", True)])
def test_in_an_elastic_job_others_may_have_been_given_what_the_model_was(plan: str, refused: bool) -> None:
    def train(transport: Transport, worker: Worker) -> bool:
        with job(transport, plan) as j:
            j.model.load_state_dict(Net(seed=9).state_dict())
            try:
                j.step(0)
            except AttachError as refusal:
                return "load first and attach then" in str(refusal)
        return False

    assert Elastic(train, start=2, dies_at=[]).join() == [refused] * 2


def test_what_servers_do_not_step_is_loaded_with_the_rest() -> None:
    def worker(transport: Transport) -> None:
        model = Net(transport.rank)
        optimizer = momentum(model.first.parameters())
        with attach(model, optimizer, "ssp:0/ps:shards=1", transport=transport) as run:
            loss_of(model, transport.rank, 0).backward()
            optimizer.step()
            saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), run.state_dict()])
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            run.load_state_dict(saved[2])
            loss_of(model, transport.rank, 1).backward()
            optimizer.step()

    run_threads(2, worker, deadline_s=20)


def test_what_is_a_ranks_own_may_be_loaded_by_it_alone() -> None:
    """As its experts are: nobody else has copied them, nor waits for them."""

    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, "diloco:2", leave=["last.*"]) as j:
            if transport.rank == 1:
                j.model.last.load_state_dict(Net(seed=9).last.state_dict())
            j.step(0)
        return [j.model.first.weight.detach(), j.model.scale.detach()]

    first, second = run_threads(2, worker, deadline_s=5)
    assert same(first, second)


def test_a_frozen_part_may_be_loaded_in_an_elastic_job() -> None:
    """As the network that a target follows begins: it is in nothing that others hold."""

    def train(transport: Transport, worker: Worker) -> bool:
        model = Net()
        model.last.requires_grad_(False)
        with job(transport, "local:2", model=model) as j:
            model.last.load_state_dict(Net(seed=9).last.state_dict())
            for step in range(3):
                j.step(step)
        return bool(model.last.weight.equal(Net(seed=9).last.weight))

    assert Elastic(train, start=2, dies_at=[]).join() == [True] * 2
