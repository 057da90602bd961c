"""Laws 2, 4, 5, 8 and 9 for whole training runs, under every kind of plan."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.runtime.training import (
    Job,
    MakeOptimizer,
    Net,
    adam,
    assert_close,
    job,
    momentum,
    plain,
    same,
    train,
    train_all,
    values,
)
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.transport import Single, Transport, run_threads

WORKERS = (2, 3, 4, 5, 8)
SYNCS = ("bsp", "local:2")
PROGRAMS = ("native", "ring", "recursive-doubling", "allgather")
CODECS = ("none", "bf16", "fp16", "int8", "int8:rounding=stochastic", "topk:0.2")
COMPRESSIONS = (*CODECS, *(f"{codec}+ef" for codec in CODECS[1:]))
SCHEDULES = ("sequential", "wfbp", "fusion:64")


def _legal(text: str) -> bool:
    try:
        Plan.parse(text)
    except PlanError:
        return False
    return True


# Every legal triple, with schedules and numbers of workers in turn.
TRIPLES = [
    "/".join(triple)
    for triple in itertools.product(SYNCS, (f"allreduce:{p}" for p in PROGRAMS), COMPRESSIONS)
    if _legal("/".join(triple))
]
# What stages make of it: sparsity, buckets and memories of every kind.
STAGED = [
    "bsp/allreduce/topk:0.2+ef21",
    "bsp/allreduce:ring/int8:rounding=stochastic+diana:0.3",
    "bsp/allreduce/none+momentum:0.5+clip:1",
    "bsp/allreduce/topk:0.2+ef+dense-every:3",
    "bsp/allreduce:ring/int4+ef+dense-first:2+min:64B,dims=2",
    "bsp/allreduce/dgc:ratio=0.1,warmup=6",
    "local:2/allreduce/topk:0.2+ef+momentum:0.5+clip:1+warmup:2",
]
PLANS = [f"{triple}/{SCHEDULES[i % 3]}" for i, triple in enumerate([*TRIPLES, *STAGED])]
CASES = [(plan, WORKERS[(i + turn) % 5]) for i, plan in enumerate(PLANS) for turn in (0, 2)]
LOSSLESS = [f"bsp/allreduce:{p}/none/{s}" for p in PROGRAMS for s in SCHEDULES]
FEW = [
    "bsp",
    "bsp/allreduce:ring/none/fusion:64",
    "bsp/allreduce/bf16+ef/fusion:64",
    "bsp/allreduce:ring/int8:rounding=stochastic+ef",
    "bsp/allreduce:native/fp16/sequential",
    "bsp/allreduce/topk:0.2+ef/fusion:64",
    "local:2/allreduce:recursive-doubling/none/sequential",
    "local:2/allreduce/int8:rounding=stochastic/wfbp",
    "local:3/allreduce/topk:0.2+ef/fusion:64",
    "bsp/allreduce/none/mgwfbp",
    "bsp/allreduce:ring/bf16+ef/ascwfbp",
    "bsp/allreduce:ring/none/p3:64",
    "bsp/allreduce/topk:0.2+ef/tictac",
    "bsp/allreduce:ring/int8/bytescheduler:64,192",
    "bsp/allreduce/none/pace:128",
    "bsp/allreduce/none/dear:64",
    *STAGED,
]


@pytest.mark.parametrize(("plan", "n"), CASES)
def test_traffic_and_agreement(plan: str, n: int) -> None:
    """Laws 2 and 9: bytes are as planned; replicas end bit-identical, and under bsp are so after every step."""
    results = train_all(n, plan, steps=3)
    for trained in results:
        assert trained.report.sent_bytes == trained.report.planned_bytes > 0
        assert trained.report.skipped == 0
        assert same(trained.parameters, results[0].parameters)
        if plan.startswith("bsp"):
            assert all(same(a, b) for a, b in zip(trained.seen, results[0].seen, strict=True))


@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize("plan", LOSSLESS)
def test_lossless_plans_train_as_one_worker_on_all_data(plan: str, optimizer: MakeOptimizer) -> None:
    for trained in train_all(3, plan, steps=5, optimizer=optimizer):
        assert_close(trained.parameters, plain(3, steps=5, optimizer=optimizer))


def test_a_world_of_one_is_plain_pytorch() -> None:
    """Law 5, bit for bit, for every plan."""
    expected = plain(1, steps=3, optimizer=adam)
    for plan in PLANS:
        alone = train(Single(), plan, steps=3, optimizer=adam)
        assert same(alone.parameters, expected)
        assert alone.report.sent_bytes == alone.report.planned_bytes == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_keeping_everything_is_dense(n: int, schedule: str) -> None:
    kept = train_all(n, f"bsp/allreduce:allgather/topk:1+ef/{schedule}")
    dense = train_all(n, f"bsp/allreduce:allgather/none/{schedule}")
    assert same(kept[0].parameters, dense[0].parameters)
    # Where the choice is free, values that all travel go without their places.
    kept, dense = (train_all(n, f"bsp/allreduce/{sender}/{schedule}") for sender in ("topk:1+ef", "none"))
    assert same(kept[0].parameters, dense[0].parameters)
    assert kept[0].report.sent_bytes == dense[0].report.sent_bytes


@pytest.mark.parametrize("n", [2, 3, 5])
def test_one_local_step_of_sgd_is_bsp(n: int) -> None:
    assert_close(train_all(n, "local:1", steps=5)[0].parameters, plain(n, steps=5))


@pytest.mark.parametrize("compression", ["none", "topk:0.2+ef", "int8"])
def test_the_last_step_is_not_lost(compression: str) -> None:
    """Ten steps in rounds of four: two are left at the end, and are agreed on."""
    results = train_all(3, f"local:4/allreduce/{compression}", steps=10)
    for trained in results:
        assert same(trained.parameters, results[0].parameters)
        assert not same(trained.parameters, trained.seen[7])
        assert trained.report.rounds == 3
        assert trained.report.sent_bytes == trained.report.planned_bytes
    if compression == "none":
        ends = [trained.seen[-1] for trained in results]
        means = [torch.stack(of_one).mean(0) for of_one in zip(*ends, strict=True)]
        assert_close(results[0].parameters, means)


def test_workers_with_less_data_wait_for_the_others() -> None:
    """Local methods: who is done early takes part in the others' rounds."""

    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, "local:2") as j:
            for step in range(3 + 4 * transport.rank):
                j.step(step)
        assert j.run.report().sent_bytes == j.run.report().planned_bytes
        return values(j.model)

    results = run_threads(3, worker, deadline_s=20)
    assert all(same(parameters, results[0]) for parameters in results)


@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize("plan", FEW)
def test_resuming_is_continuing(plan: str, optimizer: MakeOptimizer) -> None:
    """Law 4, bit for bit, in the middle of a local round too."""

    def worker(transport: Transport) -> None:
        with job(transport, plan, optimizer=optimizer) as j:
            for step in range(5):
                j.step(step)
            states = j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict()
            saved = [_copied(state) for state in states]
            for step in range(5, 9):
                j.step(step)
        with job(transport, plan, model=Net(seed=77), optimizer=optimizer) as other:
            _load(other, saved)
            assert other.run.step == 5
            for step in range(5, 9):
                other.step(step)
        assert same(values(j.model), values(other.model))

    run_threads(3, worker, deadline_s=20)


def test_resuming_under_other_buckets() -> None:
    """State is kept by parameter name: a checkpoint outlives the way buckets were cut, and the program."""

    def worker(transport: Transport) -> None:
        before, after = (
            "bsp/allreduce:allgather/bf16+ef/fusion:64",
            "bsp/allreduce:allgather/bf16+ef/sequential",
        )
        with job(transport, before) as j:
            for step in range(3):
                j.step(step)
            saved = [_copied(s) for s in (j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict())]
            for step in range(3, 6):
                j.step(step)
        with job(transport, after, model=Net(seed=77)) as other:
            _load(other, saved)
            for step in range(3, 6):
                other.step(step)
        assert same(values(j.model), values(other.model))

    run_threads(3, worker, deadline_s=20)


def _copied(state: object) -> object:
    """Returns what a file would bring back: nothing shared with what goes on training."""
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _flat(memory: dict[str, dict[str, Tensor]]) -> dict[tuple[str, str], Tensor]:
    return {(name, kind): tensor for name, kinds in memory.items() for kind, tensor in kinds.items()}


def _load(j: Job, saved: list[object]) -> None:
    model, optimizer, run = saved
    assert isinstance(model, dict)
    assert isinstance(optimizer, dict)
    assert isinstance(run, dict)
    j.model.load_state_dict(model)
    j.optimizer.load_state_dict(optimizer)
    j.run.load_state_dict(run)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("plan", [plan for plan in FEW if plan.startswith("bsp")])
def test_a_poisoned_step_is_skipped_by_all(plan: str, poison: float) -> None:
    """Law 8: nothing changes in that step on any rank, and training goes on as if it had not been."""

    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, plan, optimizer=adam) as j:
            for step in range(3):
                j.step(step)
            before = _flat(j.run.state_dict()["engine"]["memory"])
            j.step(3, factor=poison if transport.rank == 1 else 1.0)
            after = _flat(j.run.state_dict()["engine"]["memory"])
            assert same(j.seen[3], j.seen[2])
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert j.run.report().skipped == 1
            j.step(4)
            assert not same(j.seen[4], j.seen[3])
        report = j.run.report()
        assert report.skipped == 1
        assert report.sent_bytes == report.planned_bytes
        return values(j.model)

    results = run_threads(3, worker, deadline_s=20)
    assert all(p.isfinite().all() for p in results[0])
    assert all(same(parameters, results[0]) for parameters in results)


@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize("plan", ["local:2", "local:2/allreduce/int8", "local:2/allreduce/topk:0.2+ef"])
def test_a_poisoned_round_is_skipped_by_all(plan: str, optimizer: MakeOptimizer) -> None:
    """Law 8 for local methods: all go back to where the round began, and no optimizer is left with a NaN."""

    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, plan, optimizer=optimizer) as j:
            for step in range(6):
                poisoned = step == 2 and transport.rank == 1
                j.step(step, factor=float("nan") if poisoned else 1.0)
            assert same(j.seen[3], j.seen[1])
            assert not same(j.seen[5], j.seen[3])
        assert j.run.report().skipped == 1
        return values(j.model)

    results = run_threads(3, worker, deadline_s=20)
    assert all(p.isfinite().all() for p in results[0])
    assert all(same(parameters, results[0]) for parameters in results)
