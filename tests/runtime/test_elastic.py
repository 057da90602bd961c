"""Law 12: after a death, a departure or an arrival, replicas are equal, and the mean is over those who took part."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from tests.lobby import DiedError, Elastic, Worker
from tests.runtime.training import Job, Trained, adam, job, momentum, same, values
from tightwire._attach import attach
from tightwire.errors import AttachError, MismatchError, PeerError
from tightwire.transport import Transport, run_threads

SERVED = [
    "ssp:0/ps",
    "ssp:0/ps/topk:0.2+ef",
    "ssp:2/ps",
    "asp/ps:shards=2",
    "backup:1/ps",
    "async-diloco:3/ps",
    "async-diloco:2,activation=0.3/ps:shards=2/int8+ef",
]

PLANS = [
    "bsp",
    "bsp/allreduce:ring/none/fusion:64",
    "bsp/allreduce:halving-doubling",
    "bsp/ps:shards=4",
    "bsp/allreduce/topk:0.2+ef",
    "bsp/allreduce/powersgd:1+ef",
    "bsp/allreduce/none/dear",
    "bsp/allreduce:ring/int8+ef/bytescheduler:64,128",
    "local:3",
    "diloco:3",
    "diloco:4/allreduce/int8+ef",
    "local:3,state=averaged",
    "diloco:4/allreduce/none/streaming:2",
    *SERVED,
    "diloco:3,quorum=0.5",
    "local:2,quorum=0.75,grace=2ms/allreduce/int8+ef",
    "delayed:1",
    "delayed:2/allreduce/topk:0.2+ef",
    "acco",
    "acco/allreduce:ring/int8+ef",
    "bsp/allreduce:hierarchical,shape=2x2",
    "bsp/gossip:ring",
    "local:2/gossip:exponential/choco:topk=0.2",
    "asp/gossip:ad-psgd",
]


def trainer(plan: str, steps: int = 12, **options: object):  # noqa: ANN201
    def train(transport: Transport, worker: Worker) -> Trained:
        with job(transport, plan, **options) as j:  # type: ignore[arg-type]
            while j.run.step < steps:
                j.step(j.run.step)
            j.run.finish()
            return Trained(values(j.model), j.seen, j.run.report())

    return train


def may_lack(plan: str) -> int:
    """Returns how many steps a survivor may be given, from who has rounds that it lacks: those under way at once."""
    return {"delayed:1": 1, "delayed:2": 2, "acco": 1}.get(plan.split("/")[0], 0)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dies_at", [1, 9])
def test_survivors_of_a_death_are_equal_and_train_to_the_end(plan: str, dies_at: int) -> None:
    ends = Elastic(trainer(plan, optimizer=momentum), start=4, dies_at=[None, dies_at]).join()
    assert len(ends) == 3
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])
    assert all(12 - may_lack(plan) <= end.report.steps <= 12 and end.report.workers == 3 for end in ends)
    assert all(torch.isfinite(p).all() for p in ends[0].parameters)


@pytest.mark.parametrize(
    "plan",
    ["local:3", "diloco:4/allreduce/int8+ef", "diloco:4/allreduce/none/streaming:2", "diloco:3,quorum=1"],
)
@pytest.mark.parametrize("dies_at", [3, 5])
def test_survivors_step_on_while_the_dead_one_still_counts(plan: str, dies_at: int) -> None:
    def train(transport: Transport, worker: Worker) -> Trained:
        worker.patience = 2
        return trainer(plan, optimizer=momentum)(transport, worker)

    elastic = Elastic(train, start=3, dies_at=[None, dies_at])
    ends = elastic.join()
    assert len(ends) == 2
    assert same(ends[0].parameters, ends[1].parameters)
    assert all(end.report.steps == 12 and end.report.workers == 2 for end in ends)
    assert all(worker.patience < 0 for worker in elastic.workers if not worker.is_dead)  # they were asked


@pytest.mark.parametrize(
    "plan", ["local:3", "diloco:4/allreduce/int8+ef", "diloco:4/allreduce/none/streaming:2", "delayed:2"]
)
@pytest.mark.parametrize("dies_at", range(1, 30, 2))
def test_a_round_that_reached_one_survivor_counts_also_where_both_come_to_their_end_first(
    plan: str, dies_at: int
) -> None:
    def train(transport: Transport, worker: Worker) -> Trained:
        worker.patience = 100
        return trainer(plan, steps=8, optimizer=momentum)(transport, worker)

    ends = Elastic(train, start=3, dies_at=[None, dies_at]).join()
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])


@pytest.mark.parametrize("again", range(12))
def test_who_comes_into_a_phase_that_has_begun_does_not_begin_it_again(again: int) -> None:
    """The others lost a member while they began it, after their meeting; its moment moves from run to run."""
    elastic = Elastic(trainer("acco@4~bsp@7~acco", optimizer=momentum), start=3, dies_at=[None, 11])
    while not elastic.workers[1].is_dead and elastic.threads[0].is_alive():
        time.sleep(0.001)
    elastic.start()
    ends = elastic.join()
    most = max(end.report.workers for end in ends)
    together = [end for end in ends if end.report.workers == most]
    assert all(same(together[0].parameters, end.parameters) for end in together[1:])


@pytest.mark.parametrize("plan", ["asp/gossip:ad-psgd@5~bsp", "local:3@6~bsp", "bsp/gossip:ring@5~bsp"])
@pytest.mark.parametrize("dies_at", range(12, 36, 2))
def test_a_death_while_states_are_made_equal_leaves_them_equal(plan: str, dies_at: int) -> None:
    """Who was lost to the others meanwhile lacks the state that they have; where all were, it is made equal anew."""
    ends = Elastic(
        trainer(plan, steps=10, optimizer=momentum), start=4, dies_at=[None, dies_at, dies_at]
    ).join()
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])


@pytest.mark.parametrize("plan", ["local:4", "diloco:6/allreduce/none/streaming:3"])
def test_rounds_that_were_put_off_for_longer_by_one_begin_in_the_same_order(plan: str) -> None:
    def train(transport: Transport, worker: Worker) -> Trained:
        worker.patience = 1 if worker.name == "worker 0" else 6
        return trainer(plan, steps=24, optimizer=momentum)(transport, worker)

    elastic = Elastic(train, start=3, dies_at=[None, 5])
    ends = elastic.join()
    assert len(ends) == 2
    assert same(ends[0].parameters, ends[1].parameters)
    assert elastic.lobby.number == 2  # else each was in another round, and took the other for lost


def test_who_has_trained_is_no_worker_of_a_job_that_is_still_to_begin() -> None:
    """Else survivors of a death in the first round would wait until `min_workers` have come."""
    elastic = Elastic(trainer("bsp"), start=3, dies_at=[None, 2])  # two sends hand the first state on
    elastic.join()
    survivors = [worker.rounds_told for worker in elastic.workers if not worker.is_dead]
    assert all(told[0] == 0 and min(told[1:]) >= 1 for told in survivors)


@pytest.mark.parametrize("plan", PLANS)
def test_two_deaths_and_two_newcomers(plan: str) -> None:
    def train(transport: Transport, worker: Worker) -> Trained:
        with job(transport, plan, optimizer=adam) as j:
            while j.run.step < 40:
                if worker.name == "worker 0" and j.run.step in (9, 21):
                    elastic.start()
                    while not worker.lobby.waiting and not worker.knocks():
                        time.sleep(0.002)
                j.step(j.run.step)
            j.run.finish()
            return Trained(values(j.model), j.seen, j.run.report())

    elastic = Elastic(train, start=3, dies_at=[None, 13, 37])
    ends = elastic.join()
    assert (
        len(ends) == 3 or plan == "asp/gossip:ad-psgd"
    )  # in which one may have made its steps before it dies
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])
    assert 40 - 2 * may_lack(plan) <= ends[0].report.steps <= 40
    assert {end.report.workers for end in ends} == {3} or plan == "asp/gossip:ad-psgd"


@pytest.mark.parametrize("plan", ["acco@2~bsp@4~acco", "bsp/gossip:ring@3~delayed:1"])
@pytest.mark.parametrize("dies_at", range(5, 30, 3))
def test_a_death_while_all_change_plans_is_survived(plan: str, dies_at: int) -> None:
    ends = Elastic(trainer(plan, steps=6, optimizer=momentum), start=3, dies_at=[None, dies_at]).join()
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])


@pytest.mark.parametrize("plan", ["bsp@4~local:2", "acco@4~bsp", "local:2@4~bsp", "local:2,quorum=0.5@4~bsp"])
@pytest.mark.parametrize("comes_at", [2, 3, 4])
def test_who_comes_at_the_end_of_a_phase_begins_the_next_with_the_others(plan: str, comes_at: int) -> None:
    def train(transport: Transport, worker: Worker) -> tuple[Trained, set[tuple[bool, str]]]:
        under = set()
        with job(transport, plan, optimizer=momentum) as j:
            while j.run.step < 8:
                under.add((j.run.step < 4, str(j.run.plan)))
                if worker.name == "worker 0" and j.run.step == comes_at:
                    elastic.start()
                    while not worker.lobby.waiting and not worker.knocks():
                        time.sleep(0.002)
                j.step(j.run.step)
            j.run.finish()
            return Trained(values(j.model), j.seen, j.run.report()), under

    elastic = Elastic(train, start=2, dies_at=[])
    ends = elastic.join()
    assert len(ends) == 3
    assert len(set().union(*(under for _, under in ends))) == 2  # one plan before, one after
    assert all(same(ends[0][0].parameters, end.parameters) for end, _ in ends[1:])


@pytest.mark.parametrize("plan", ["bsp", "local:3", "diloco:3", "diloco:3,quorum=0.5", "bsp/gossip:ring"])
def test_who_is_told_to_leave_ends_its_round_and_goes(plan: str) -> None:
    def train(transport: Transport, worker: Worker) -> Trained:
        with job(transport, plan) as j:
            while j.run.step < 12:
                if worker.name == "worker 1" and j.run.step == 4:
                    worker.notice.set()
                j.step(j.run.step)
            j.run.finish()
            return Trained(values(j.model), j.seen, j.run.report())

    ends = Elastic(train, start=3, dies_at=[]).join()
    assert len(ends) == 2
    assert same(ends[0].parameters, ends[1].parameters)


RING = "bsp/allreduce:ring"
ALIKE_IN_EVERY_STEP = (RING, "ssp:0/ps", "bsp/ps:servers=1")


class OneHot(nn.Module):
    """Parameters whose gradient is 1 at the place of the worker, so that a mean tells who took part."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(4) for _ in range(3))


@pytest.mark.parametrize(
    ("plan", "dies_at"),
    [
        *((RING, at) for at in range(0, 24, 3)),
        *((plan, at) for plan in ("ssp:0/ps", "bsp/ps:servers=1") for at in (2, 5, 9, 16)),
    ],
)
def test_means_are_over_those_who_took_part_and_no_gradient_counts_twice(plan: str, dies_at: int) -> None:
    _, ends = one_hots(plan, dies_at)
    assert len(ends) >= (2 if "servers" in plan else 3)
    assert all(end[-1] == ends[0][-1] for end in ends)
    for before, after in itertools.pairwise([[[0.0] * 4] * 3, *ends[0]]):
        for a, b in zip(after, before, strict=True):
            moved = [there - here for here, there in zip(a, b, strict=True)]
            took_part = sum(m != 0 for m in moved)
            assert all(m == pytest.approx(1 / took_part) for m in moved if m), moved
            assert took_part or plan == RING  # servers drop no round


@pytest.mark.parametrize("dies_at", [2, 5, 9, 16, 23])
def test_each_round_with_a_backup_worker_is_a_mean_over_those_who_took_part(dies_at: int) -> None:
    _, ends = one_hots("backup:1/ps", dies_at)
    assert all(end[-1] == ends[0][-1] for end in ends)
    for weight in ends[0][-1]:
        assert -sum(weight) == pytest.approx(round(-sum(weight)))  # every round adds 1
        assert -sum(weight) >= 4


@pytest.mark.parametrize("dies_at", [2, 5, 9, 14, 19, 24])
def test_what_a_quorum_has_not_taken_is_neither_lost_nor_counted_twice(dies_at: int) -> None:
    elastic, ends = one_hots("local:2,quorum=0.5", dies_at)
    assert all(end[-1] == ends[0][-1] for end in ends)
    for weight in ends[0][-1]:
        made = [-weight[int(worker.name[-1])] for worker in elastic.workers if not worker.is_dead]
        assert all(0.3 < part < 6.1 for part in made), (
            weight
        )  # of six steps, at least those of a round by its mean
        assert sum(-w for w in weight) < 6.1 * 3


@pytest.mark.parametrize("dies_at", [2, 5, 9, 14, 19, 24])
def test_of_changes_to_servers_none_counts_twice_and_at_most_one_of_each_is_lost(dies_at: int) -> None:
    elastic, ends = one_hots("async-diloco:2,outer_lr=1,outer_momentum=0/ps", dies_at)
    assert all(end[-1] == ends[0][-1] for end in ends)
    for worker in elastic.workers:
        if worker.is_dead:
            continue
        for weight in ends[0][-1]:
            assert (6 - 2) / 4 - 1e-6 <= -weight[int(worker.name[-1])] <= 6 / 3 + 1e-6


def one_hots(plan: str, dies_at: int) -> tuple[Elastic, list[Any]]:
    """Has four train, of which one dies; returns what each saw its parameters to be, step by step."""

    def train(transport: Transport, worker: Worker) -> list[list[float]] | None:
        model, number = OneHot(), int(worker.name[-1])
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        seen = []
        with attach(model, optimizer, plan, transport=transport) as run:
            while run.step < 6 and not run.is_server:
                optimizer.zero_grad()
                sum(weight[number] for weight in model.weights).backward()  # type: ignore[union-attr]
                optimizer.step()
                seen.append([weight.tolist() for weight in model.weights])
            run.finish()
            seen.append([weight.tolist() for weight in model.weights])
        return None if run.is_server else seen[:-1] if plan in ALIKE_IN_EVERY_STEP else seen

    elastic = Elastic(train, start=4, dies_at=[None, None, dies_at])
    return elastic, elastic.join()


def test_a_newcomer_that_trains_something_else_is_refused_and_the_others_go_on() -> None:
    def train(transport: Transport, worker: Worker) -> Trained | str:
        if worker.name == "worker 2":
            with pytest.raises(MismatchError, match="plan: rank"), job(transport, "local:3"):
                pass
            return "refused"
        with job(transport, "bsp") as j:
            while j.run.step < 8:
                if worker.name == "worker 0" and j.run.step == 3:
                    elastic.start()
                    while not worker.lobby.waiting:
                        time.sleep(0.002)
                j.step(j.run.step)
            j.run.finish()
            return Trained(values(j.model), j.seen, j.run.report())

    elastic = Elastic(train, start=2, dies_at=[])
    one, two, refused = elastic.join()
    assert refused == "refused"
    assert same(one.parameters, two.parameters)
    assert one.report.workers == 2


@pytest.mark.parametrize("plan", ["bsp", "ssp:0/ps"])
def test_a_newcomer_is_given_what_the_user_carries(plan: str) -> None:
    def train(transport: Transport, worker: Worker) -> float:
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        with attach(model, optimizer, plan, transport=transport, carry={"rate": scheduler}) as run:
            while run.step < 6:
                if worker.name == "worker 0" and run.step == 3:
                    elastic.start()
                    while not worker.lobby.waiting:
                        time.sleep(0.002)
                optimizer.zero_grad()
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
                scheduler.step()
        return float(scheduler.get_last_lr()[0])

    elastic = Elastic(train, start=2, dies_at=[])
    assert elastic.join() == [2.0**-6] * 3


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("lag:0.1", "cannot yet do without"),
        ("hierarchical-local:2,8,node=2", "whole nodes"),
    ],
)
def test_what_cannot_be_survived_yet_is_refused(plan: str, says: str) -> None:
    with pytest.raises(AttachError, match=says):
        Elastic(trainer(plan), start=2, dies_at=[]).join()


@pytest.mark.parametrize(
    "plan",
    [
        "bsp/ps:servers=1",
        "asp/ps:servers=2",
        "ssp:1/ps:servers=1,mix=true",
        "backup:1/ps:servers=1",
        "async-diloco:3/ps:servers=1",
    ],
)
@pytest.mark.parametrize("victim", [0, 3])
def test_a_dedicated_server_or_a_worker_dies_and_a_newcomer_comes(plan: str, victim: int) -> None:
    """The newcomer is a server where one is missing, and a worker where none is."""

    def train(transport: Transport, worker: Worker) -> tuple[list[torch.Tensor], bool]:
        with job(transport, plan, optimizer=adam) as j:
            while j.run.step < 24 and not j.run.is_server:
                # The first one there: after a death workers are at steps of their own, and one may wait for another.
                if j.run.step >= 12 and is_first.acquire(blocking=False):
                    elastic.start()
                while (
                    j.run.step >= 12 and not has_come()
                ):  # where nobody waits, the others might have ended by then
                    time.sleep(0.002)
                j.step(j.run.step)
            j.run.finish()
            return values(j.model), j.run.is_server

    def has_come() -> bool:
        return "worker 4" in {*elastic.lobby.waiting, *elastic.lobby.inside}

    is_first = threading.Lock()
    elastic = Elastic(train, start=4, dies_at=[13 if number == victim else None for number in range(4)])
    ends = elastic.join()
    trained = [parameters for parameters, is_server in ends if not is_server]
    servers = 2 if "servers=2" in plan else 1
    assert len(ends) == 4
    assert len(trained) == 4 - servers
    assert all(same(trained[0], others) for others in trained[1:])


@pytest.mark.parametrize("plan", ["bsp/allreduce/none/dear", "diloco:4,overlap=1/allreduce/none/wfbp"])
@pytest.mark.parametrize("dies_at", [9, 17])
def test_a_death_while_all_write_checkpoints_is_survived(plan: str, dies_at: int) -> None:
    def train(transport: Transport, worker: Worker) -> Trained:
        with job(transport, plan) as j:
            while j.run.step < 12:
                j.step(j.run.step)
                j.run.state_dict()
            j.run.finish()
            return Trained(values(j.model), j.seen, j.run.report())

    ends = Elastic(train, start=3, dies_at=[None, dies_at]).join()
    assert len(ends) == 2
    assert same(ends[0].parameters, ends[1].parameters)


@pytest.mark.parametrize("plan", ["bsp", "local:3", "diloco:3", "diloco:3,quorum=0.5", "bsp/gossip:ring"])
@pytest.mark.parametrize("dies_at", [3, 9])
def test_a_death_while_all_begin_to_evaluate_is_survived(plan: str, dies_at: int) -> None:
    def train(transport: Transport, worker: Worker) -> Trained:
        with job(transport, plan) as j:
            while j.run.step < 9:
                j.step(j.run.step)
                before, size = values(j.model), j.run.transport.size
                with j.run.evaluating():
                    assert all(torch.isfinite(p).all() for p in j.model.parameters())
                is_same = same(before, values(j.model))
                assert (
                    is_same or j.run.transport.size != size or "quorum" in plan
                )  # what was under way may land
            j.run.finish()
            return Trained(values(j.model), j.seen, j.run.report())

    ends = Elastic(train, start=3, dies_at=[None, dies_at]).join()
    assert len(ends) == 2
    assert same(ends[0].parameters, ends[1].parameters)


def saved_by_two(plan: str) -> Any:
    """Returns model, optimizer and what is gathered, after 5 steps."""

    def worker(transport: Transport) -> Any:
        with job(transport, plan, optimizer=momentum) as j:
            for step in range(5):
                j.step(step)
            return copy.deepcopy(
                [j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict(gather=True)]
            )

    return run_threads(2, worker, deadline_s=20)[0]


def load(j: Job, states: Any) -> None:
    states = copy.deepcopy(states)
    j.model.load_state_dict(states[0])
    j.optimizer.load_state_dict(states[1])
    j.run.load_state_dict(states[2])


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    "plan",
    [
        "bsp/allreduce/topk:0.2+ef",
        "local:3",
        "diloco:3",
        "local:2@3~bsp",
        "delayed:1",
        "ssp:0/ps",
        "bsp/gossip:ring",
    ],
)
def test_a_job_begins_from_a_checkpoint_and_newcomers_from_the_others(plan: str, workers: int) -> None:
    states = saved_by_two(plan)

    def train(transport: Transport, worker: Worker) -> list[torch.Tensor]:
        with job(transport, plan, optimizer=momentum) as j:
            if j.run.step == 0:
                load(j, states)
                assert j.run.step == 5
            while j.run.step < 12:
                if worker is elastic.workers[0] and j.run.step == 7 and len(elastic.workers) == workers:
                    elastic.start()
                    while not elastic.lobby.waiting:
                        time.sleep(0.001)
                j.step(j.run.step)
            j.run.finish()
            return values(j.model)

    elastic = Elastic(train, start=workers, dies_at=[])
    ends = elastic.join()
    assert len(ends) == workers + 1
    assert all(same(ends[0], end) for end in ends[1:])


@pytest.mark.parametrize("plan", ["bsp/allreduce/topk:0.2+ef", "local:3", "ssp:0/ps"])
def test_who_waits_for_the_dead_while_all_load_a_checkpoint_says_who_died(plan: str) -> None:
    states = saved_by_two(plan)

    def train(transport: Transport, worker: Worker) -> list[int]:
        try:
            with job(transport, plan, optimizer=momentum) as j:
                attached.wait(20)
                if worker.name == "worker 1":
                    dead.append(j.run.transport.rank)
                    worker.die()
                    raise DiedError
                load(j, states)
        except PeerError as error:
            return list(error.ranks)
        raise AssertionError("nobody missed the dead")

    dead, attached = list[int](), threading.Barrier(3)
    assert Elastic(train, start=3, dies_at=[]).join() == [dead, dead]


class Rounds:
    """Takes what a run writes of its steps."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        assert scalar_value >= 0


def test_a_newcomer_counts_on_by_what_the_others_did_meanwhile() -> None:
    """Else all would wait in their next round for the steps that it has not made."""

    def train(transport: Transport, worker: Worker) -> Trained:
        with job(transport, "local:20", optimizer=momentum) as j:
            j.run.log_to(Rounds())  # also of the step within which members change
            began, made = j.run.step, 0
            if began:  # within a round it does not go: the others do not either
                worker.silent = lambda: [] if j.run.step % 20 == 0 else [0]
            while j.run.step < 40:
                if made == 0 and began:
                    time.sleep(0.4)  # as its first step may take, with all that is loaded there
                if worker is elastic.workers[0] and j.run.step == 15:
                    elastic.start()
                    while not elastic.lobby.waiting:
                        time.sleep(0.001)
                time.sleep(0.01)
                j.step(made)
                made += 1
            j.run.finish()
            steps.append(made)
            return Trained(values(j.model), j.seen, j.run.report())

    steps: list[int] = []
    elastic = Elastic(train, start=2, dies_at=[])
    ends = elastic.join()
    assert len(ends) == 3
    assert all(same(ends[0].parameters, end.parameters) for end in ends[1:])
    assert sorted(steps)[1:] == [40, 40]
    assert min(steps) < 20  # of the last round's 20
    assert elastic.lobby.number == 2
