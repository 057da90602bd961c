"""Laws 2, 4, 5, 8 and 9 for every policy of when to agree; what joins out, lands late, or is evaluated."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws.members import listed
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
    sgd,
    values,
)
from tightwire.catalogue import parse_member
from tightwire.sync import Rounds, Sync
from tightwire.transport import Single, Transport, run_threads

N = 4
# Settings of special interest; other policies are walked in the setting of their example.
LOCAL_SETTINGS = [
    "local:3",
    "local:3,overlap=1",
    "local:3,overlap=3",
    "local:2,state=averaged",
    "local:2,state=reset",
    "local:4,doubling=2",
    "local:1,momenta=2,variances=3",
    "local:4/allreduce/none/streaming:3,overlap=2",
    "postlocal:2,start=3",
    "hierarchical-local:1,2,node=2",
    "hierarchical-local:2,4,node=2",
    "adacomm:3,interval=4",
    "easgd:2",
    "easgd:2,alpha=0.1",
    "slowmo:2",
    "slowmo:3,beta=0.5,state=averaged",
    "slowmo:3,state=kept/allreduce/none/streaming:2",
    "diloco:3",
    "diloco:2,overlap=2",
    "diloco:2,overlap=2,eager=true",
    "diloco:2,overlap=2/allreduce/dilocox:1",
    "diloco:4/allreduce/none/streaming:4",
    "diloco:4/allreduce/int8+ef/streaming:2,overlap=0",
    "diloco:3/allreduce/topk:0.3+ef/fusion:64",
    "diloco:3,quorum=0.75,grace=20s",
    "local:2,quorum=0.5,grace=20s/allreduce/topk:0.3+ef/fusion:64",
    "edit:2,clip=0.01",
    "edit:4/allreduce/int8+ef/streaming:2,overlap=1",
    "diloco:2/allreduce/trimmed:0.25",
    "fedavg:2,0.5",
    "fedavg:2,0.5,state=kept",
]
GRADIENT_SETTINGS = [
    "delayed:0",
    "delayed:1",
    "delayed:3",
    "delayed:1/allreduce/topk:0.3+ef/fusion:64",
    "delayed:1/allreduce/cocktail",
    "lag:0.1",
    "lag:5/allreduce/none/fusion:64",
    "gaia:0.05",
    "sparta:0.3",
    "gaia:0.5/allreduce/none/fusion:64",
]
LOCAL = listed("sync", Rounds, LOCAL_SETTINGS)


def is_served(plan: str) -> bool:
    policy = parse_member("sync", plan.partition("/")[0])
    return isinstance(policy, Sync) and policy.is_served


# Policies that servers carry out have laws of their own, and bsp is what the others are compared with.
GRADIENTS = [
    text
    for text in listed("sync", Sync, [*LOCAL, *GRADIENT_SETTINGS, "bsp"])
    if text not in (*LOCAL, "bsp") and not is_served(text)
]
SYNCS = [*LOCAL, *GRADIENTS]


def report_to(j: Job, step: int) -> None:
    j.run.report_loss(1.0 + 1.0 / (step + 1))
    j.run.report_samples(1 + j.rank)


def step_of(j: Job, step: int, **options: Any) -> None:
    report_to(j, step)
    j.step(step, **options)


def trained(transport: Transport, plan: str, steps: int = 5, **options: Any) -> tuple[list[Tensor], Any]:
    with job(transport, plan, **options) as j:
        for step in range(steps):
            step_of(j, step)
    return values(j.model), j.run.report()


def all_trained(plan: str, n: int = N, **options: Any) -> list[tuple[list[Tensor], Any]]:
    return run_threads(n, lambda transport: trained(transport, plan, **options), deadline_s=20)


@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize("plan", SYNCS)
def test_traffic_and_agreement(plan: str, optimizer: MakeOptimizer) -> None:
    results = all_trained(plan, optimizer=optimizer)
    for parameters, report in results:
        assert report.sent_bytes == report.planned_bytes > 0
        assert report.skipped == 0
        assert same(parameters, results[0][0])
        assert len(report.waited_s_by_worker) == N


def test_a_world_of_one_is_plain_pytorch() -> None:
    expected = plain(1, steps=3, optimizer=adam)
    for plan in SYNCS:
        parameters, report = trained(Single(), plan, steps=3, optimizer=adam)
        assert same(parameters, expected)
        assert report.sent_bytes == report.planned_bytes == 0


@pytest.mark.parametrize(
    ("plan", "other"),
    [
        ("local:1", "bsp"),
        ("local:3,overlap=0", "local:3"),
        ("local:2/allreduce/none/streaming:1,overlap=0", "local:2"),
        ("hierarchical-local:2,2,node=2", "local:2"),
        ("hierarchical-local:1,1,node=1", "bsp"),
        ("slowmo:2,beta=0,state=kept", "local:2"),
        ("diloco:2,outer_lr=1,outer_momentum=0", "local:2"),
        ("diloco:3/allreduce/none/streaming:1,overlap=0", "diloco:3"),
        ("diloco:3,quorum=0.9", "diloco:3"),
        ("local:2,quorum=0.9", "local:2"),
        ("fedavg:2,1,state=kept", "local:2"),
        ("postlocal:2,start=3", "bsp@3~local:2"),
        ("postlocal:2,start=99", "bsp"),
        ("delayed:0", "bsp"),
        ("lag:0", "bsp"),
        ("gaia:0", "bsp"),
        ("sparta:1", "bsp"),
        ("local:1,state=averaged", "local:1"),
        ("local:2,momenta=1,variances=1", "local:2,state=averaged"),
        ("local:1,doubling=3", "local:1"),
        ("local:4,doubling=99", "local:1"),
    ],
)
def test_degenerate_equals_plain(plan: str, other: str) -> None:
    """Law 5, where an argument takes the policy away."""
    atol = 0.0 if "bsp" not in other else 1e-6

    def worker(transport: Transport) -> None:
        ends = []
        for text in (plan, other):
            with job(transport, text, optimizer=sgd) as j:
                for step in range(5):
                    j.step(step)
            ends.append(values(j.model))
        assert_close(*ends, atol=atol)

    run_threads(N, worker, deadline_s=20)


def copied(state: object) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("plan", "cut"), [(plan, (2, 5)[place % 2]) for place, plan in enumerate(SYNCS)])
def test_resuming_is_continuing(plan: str, cut: int) -> None:
    """Law 4, bit for bit, within rounds, while an exchange travels, and on both sides of a phase's end."""

    def worker(transport: Transport) -> None:
        with job(transport, plan, optimizer=adam) as j:
            for step in range(cut):
                step_of(j, step)
            saved = [copied(s) for s in (j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict())]
            for step in range(cut, 9):
                step_of(j, step)
        with job(transport, plan, model=Net(seed=77), optimizer=adam) as other:
            other.model.load_state_dict(saved[0])
            other.optimizer.load_state_dict(saved[1])
            other.run.load_state_dict(saved[2])
            for step in range(cut, 9):
                step_of(other, step)
        assert same(values(j.model), values(other.model))

    run_threads(N, worker, deadline_s=20)


@pytest.mark.parametrize("plan", SYNCS)
def test_evaluating_lends_one_model_and_gives_back(plan: str) -> None:
    def worker(transport: Transport) -> list[list[Tensor]]:
        seen = []
        with job(transport, plan, optimizer=momentum) as j:
            for step in range(6):
                step_of(j, step)
                before = values(j.model)
                with j.run.evaluating():
                    seen.append(values(j.model))
                if not any(
                    word in plan for word in ("overlap", "streaming", "delayed", "acco")
                ):  # what travels lands first
                    assert same(values(j.model), before)
            with j.run.evaluating(), pytest.raises(Exception, match="would be undone"):
                j.optimizer.step()
        report = j.run.report()
        assert report.sent_bytes == report.planned_bytes
        return seen

    first, *others = run_threads(N, worker, deadline_s=20)
    for other in others:
        assert all(same(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("plan", SYNCS)
def test_uneven_inputs_are_joined_out(plan: str) -> None:
    """Who is done early takes part until all are; bytes are still as planned, and replicas equal."""

    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, plan, optimizer=momentum) as j:
            for step in range(4 + 3 * transport.rank):
                step_of(j, step)
        assert j.run.report().sent_bytes == j.run.report().planned_bytes
        return values(j.model)

    results = run_threads(3 if "node" not in plan else 4, worker, deadline_s=20)
    assert all(same(parameters, results[0]) for parameters in results)
    assert all(p.isfinite().all() for p in results[0])


def test_who_is_done_counts_nothing() -> None:
    """After rank 0 has ended, rounds are the mean of the others: exactly those of a run without it."""

    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, "local:2") as j:
            for step in range(2 if transport.rank == 0 else 6):
                j.step(step)
        return values(j.model)

    def alone(transport: Transport) -> list[Tensor]:
        with job(transport, "local:2") as j:
            start = run_threads(3, lambda t: trained(t, "local:2", steps=2)[0], deadline_s=20)[0]
            with torch.no_grad():
                for parameter, value in zip(j.model.parameters(), start, strict=True):
                    parameter.copy_(value)
            j.run.load_state_dict(j.run.state_dict() | {"engine": _anchored(j)})
            j.rank += 1
            for step in range(2, 6):
                j.step(step)
        return values(j.model)

    def _anchored(j: Job) -> dict[str, Any]:
        named = {name: p.detach().clone() for name, p in j.model.named_parameters()}
        return j.run.state_dict()["engine"] | {"anchors": named}

    assert_close(run_threads(3, worker, deadline_s=20)[1], run_threads(2, alone, deadline_s=20)[0])


@pytest.mark.parametrize("plan", [p for p in LOCAL if "streaming" not in p])
def test_a_poisoned_step_leaves_no_trace(plan: str) -> None:
    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, plan, optimizer=adam) as j:
            for step in range(8):
                step_of(j, step, factor=float("nan") if step == 4 and transport.rank == 1 else 1.0)
        assert j.run.report().sent_bytes == j.run.report().planned_bytes
        return values(j.model)

    results = run_threads(N, worker, deadline_s=20)
    assert all(p.isfinite().all() for p in results[0])
    assert all(same(parameters, results[0]) for parameters in results)


class Quadratic(torch.nn.Module):
    """½(x − target)², whose minimum differs from worker to worker."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(1))
        self.target = target

    def forward(self) -> Tensor:
        return 0.5 * (self.x - self.target).square().sum()


def descend(transport: Transport, plan: str, steps: int, **options: Any) -> float:
    model = Quadratic(target=[1.0, 3.0][transport.rank])
    with job(transport, plan, model=model, **options) as j:
        for _ in range(steps):
            j.optimizer.zero_grad()
            model().backward()
            j.optimizer.step()
    return model.x.item()


@pytest.mark.parametrize(
    ("plan", "rounds", "expected"),
    [
        # One inner step of rate 0.1 from 0 moves the mean to 0.2: the pseudo-gradient is −0.2.
        ("diloco:1,outer_lr=0.5,outer_momentum=0", 1, 0.1),
        ("diloco:1,outer_lr=1,outer_momentum=0", 1, 0.2),
        # Nesterov: the step is lr·(g + µ·buf), buf = g at first.
        ("diloco:1,outer_lr=0.7,outer_momentum=0.9", 1, 0.7 * 0.2 * 1.9),
        # u = 0.2/γ, x = γu; then from 0.2 the mean moves by 0.18, u = (0.5·0.2 + 0.18)/γ.
        ("slowmo:1,beta=0.5", 2, 0.2 + 0.5 * 0.2 + 0.18),
        # The centre moves by α·Σ(x − c) = 0.25·(0.1 + 0.3).
        ("easgd:1,alpha=0.25", 1, 0.1),
        ("local:1,overlap=1", 1, 0.2),
        ("delayed:1", 1, 0.2),
    ],
)
def test_the_outer_step_goes_where_workers_went(plan: str, rounds: int, expected: float) -> None:
    for x in run_threads(2, lambda t: descend(t, plan, rounds), deadline_s=20):
        assert x == pytest.approx(expected, abs=1e-6)


def test_any_torch_optimizer_takes_the_outer_step() -> None:
    def worker(transport: Transport) -> float:
        return descend(transport, "diloco:1", 1, outer=lambda agreed: torch.optim.Adam(agreed, lr=0.05))

    for x in run_threads(2, worker, deadline_s=20):
        assert x == pytest.approx(0.05, abs=1e-4)  # Adam's first step is its rate, uphill of −g


@pytest.mark.parametrize("plan", ["diloco:4", "slowmo:4", "local:4", "easgd:2", "local:4,overlap=4", "delayed:1",
                                  "diloco:4,overlap=4,eager=true",
                                  "diloco:4/allreduce/none/streaming:1"])  # fmt: skip
def test_it_finds_the_minimum_of_the_sum(plan: str) -> None:
    for x in run_threads(2, lambda t: descend(t, plan, 400), deadline_s=20):
        assert x == pytest.approx(2.0, abs=0.05)
