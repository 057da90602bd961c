"""Reductions in training: what they remember survives checkpoints, poisoned steps and other buckets."""

from __future__ import annotations

import io

import pytest
import torch

from tests.runtime.training import Job, Net, assert_close, job, momentum, plain, same, train_all, values
from tightwire.errors import AttachError
from tightwire.transport import Transport, run_threads

PLANS = (
    "bsp/allreduce/powersgd:1+ef/fusion:64",
    "bsp/allreduce/powersgd:2+ef/sequential",
    "bsp/allreduce/gtopk:0.2+ef",
    "bsp/allreduce/oktopk:0.1+ef/sequential",
    "bsp/allreduce/sparcml:0.1+ef/sequential",
    "bsp/allreduce/doublesqueeze:int8+ef",
    "local:2/allreduce/powersgd:1+ef/sequential",
)


def saved(j: Job) -> list[object]:
    file = io.BytesIO()
    torch.save([j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict()], file)
    file.seek(0)
    states: list[object] = torch.load(file, weights_only=True)
    return states


def load(j: Job, states: list[object]) -> None:
    for target, state in zip((j.model, j.optimizer, j.run), states, strict=True):
        target.load_state_dict(state)  # type: ignore[attr-defined]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("plan", PLANS)
def test_traffic_and_agreement(plan: str, n: int) -> None:
    results = train_all(n, plan, steps=4)
    for trained in results:
        assert trained.report.sent_bytes == trained.report.planned_bytes > 0
        assert same(trained.parameters, results[0].parameters)


@pytest.mark.parametrize(
    "compression", ["powersgd:9", "gtopk:1", "oktopk:1", "sparcml:1", "doublesqueeze:topk:1"]
)
def test_losing_nothing_trains_as_one_worker_on_all_data(compression: str) -> None:
    for trained in train_all(3, f"bsp/allreduce/{compression}/fusion:64", optimizer=momentum):
        assert_close(trained.parameters, plain(3, optimizer=momentum))


@pytest.mark.parametrize("plan", PLANS)
def test_resuming_is_continuing(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan, optimizer=momentum) as j:
            for step in range(5):
                j.step(step)
            states = saved(j)
            for step in range(5, 9):
                j.step(step)
        with job(transport, plan, model=Net(seed=77), optimizer=momentum) as other:
            load(other, states)
            for step in range(5, 9):
                other.step(step)
        assert same(values(j.model), values(other.model))

    run_threads(3, worker, deadline_s=20)


def test_a_warm_start_outlives_the_cut_of_buckets() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp/allreduce/powersgd:1+ef/fusion:64") as j:
            for step in range(5):
                j.step(step)
            states = saved(j)
            j.step(5)
        with job(transport, "bsp/allreduce/powersgd:1+ef/sequential", model=Net(seed=77)) as other:
            load(other, states)
            other.step(5)
        assert_close(values(j.model), values(other.model))

    run_threads(3, worker, deadline_s=20)


def test_another_rank_does_not_fit() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp/allreduce/powersgd:1+ef") as j:
            j.step(0)
            states = saved(j)
        with (
            job(transport, "bsp/allreduce/powersgd:2+ef") as other,
            pytest.raises(AttachError, match=r"first\.weight"),
        ):
            load(other, states)

    run_threads(2, worker, deadline_s=20)


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan.startswith("bsp")])
def test_a_poisoned_step_leaves_no_trace(plan: str) -> None:
    """Law 8: training goes on as if the step had not been."""

    def worker(transport: Transport, poison: bool) -> list[torch.Tensor]:
        with job(transport, plan) as j:
            for step in range(3):
                j.step(step)
            if poison:
                j.step(3, factor=float("nan") if transport.rank == 1 else 1.0)
                assert same(j.seen[3], j.seen[2])
                assert j.run.report().skipped == 1
            before = j.run.state_dict()
            j.step(4)
            assert before["engine"]["rounds"] == 3 + poison
        return values(j.model)

    poisoned = run_threads(3, lambda t: worker(t, True), deadline_s=20)
    spared = run_threads(3, lambda t: worker(t, False), deadline_s=20)
    if "int8" not in plan:  # whose randomness counts rounds
        assert same(poisoned[0], spared[0])


@pytest.mark.parametrize("text", ["zstd", "zstd:delta=true", "entropy"])
def test_lossless_trains_as_uncompressed_does_and_counts_what_it_agreed_on(text: str) -> None:
    plain, squeezed = (train_all(2, f"bsp/allreduce/{what}") for what in ("none", text))
    assert same(plain[0].parameters, squeezed[0].parameters)
    for end in squeezed:
        assert end.report.planned_bytes == end.report.sent_bytes > 0


@pytest.mark.parametrize(
    "plan",
    [
        "bsp/allreduce/{}/bytescheduler",
        "bsp/allreduce/{}/fusion:64",
        "local:2/allreduce/{}",
        "delayed:1/allreduce/{}",
    ],
)
def test_coded_exponents_change_no_bit_of_any_lossless_plan(plan: str) -> None:
    plain, coded = (train_all(2, plan.format(what), optimizer=momentum) for what in ("none", "entropy"))
    assert same(plain[0].parameters, coded[0].parameters)
    assert all(end.report.planned_bytes == end.report.sent_bytes > 0 for end in coded)
