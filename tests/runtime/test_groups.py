"""Experts: parameters that some ranks share are averaged among those, and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from tests.runtime.training import adam, assert_close, batch, initialise, same, sgd, values
from tightwire._attach import attach
from tightwire.errors import AttachError, MismatchError
from tightwire.runtime import Run
from tightwire.transport import Transport, run_threads

N = 4
PAIRS = {0: [0, 2], 1: [1, 3], 2: [2, 0], 3: [3, 1]}


class Layer(nn.Module):
    """A shared layer, and this rank's expert, which sees some batches only."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.shared, self.expert = nn.Linear(5, 5), nn.Linear(5, 3)
        initialise(self, rank)

    def forward(self, x: Tensor, uses_expert: bool = True) -> Tensor:
        hidden = torch.tanh(self.shared(x))
        out: Tensor = self.expert(hidden) if uses_expert else hidden
        return out


def loss_of(model: nn.Module, rank: int, step: int) -> Tensor:
    out: Tensor = model(batch(rank, step), uses_expert=(rank, step) != (1, 1))
    return (out - rank).square().mean()


def run_with(
    plan: str,
    act: Callable[[Layer, Optimizer, Run], Any],
    make: Callable[[Any], Optimizer] = sgd,
    **options: Any,
) -> list[Any]:
    def worker(transport: Transport) -> Any:
        model = Layer(transport.rank)
        optimizer = make(model.parameters())
        groups = options.get("groups", {"expert.*": PAIRS[transport.rank]})
        with attach(model, optimizer, plan, transport=transport, groups=groups) as run:
            act(model, optimizer, run)
        report = run.report()
        assert report.sent_bytes == report.planned_bytes
        return values(model)

    return run_threads(N, worker, deadline_s=20)


def steps(count: int) -> Callable[[Layer, Optimizer, Run], None]:
    def act(model: Layer, optimizer: Optimizer, run: Run) -> None:
        for step in range(count):
            optimizer.zero_grad()
            loss_of(model, run.transport.rank, step).backward()
            optimizer.step()

    return act


def assert_shared(ends: list[list[Tensor]]) -> None:
    for rank, end in enumerate(ends):
        assert same(end[:2], ends[0][:2])
        assert same(end[2:], ends[PAIRS[rank][1]][2:])
    assert not same(ends[0][2:], ends[1][2:])


def plainly(count: int) -> list[list[Tensor]]:
    """Trains all replicas side by side, with means where they are due."""
    models = [Layer(min(PAIRS[rank])) for rank in range(N)]
    for model in models:
        model.shared.load_state_dict(models[0].shared.state_dict())
    optimizers = [sgd(model.parameters()) for model in models]
    for step in range(count):
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            loss_of(model, rank, step).backward()
        zero = [
            [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in m.parameters()]
            for m in models
        ]
        for rank, model in enumerate(models):
            for number, p in enumerate(model.parameters()):
                among = range(N) if number < 2 else PAIRS[rank]
                p.grad = sum(zero[other][number] for other in among) / len(among)  # type: ignore[assignment]
        for optimizer in optimizers:
            optimizer.step()
    return [values(model) for model in models]


@pytest.mark.parametrize(
    "plan", ["bsp", "bsp/allreduce:ring/none/mgwfbp", "bsp/allreduce:ring/none/p3", "local:1"]
)
def test_experts_are_averaged_within_their_groups(plan: str) -> None:
    ends = run_with(plan, steps(4))
    assert_shared(ends)
    for end, expected in zip(ends, plainly(4), strict=True):
        assert_close(end, expected, atol=1e-5)


@pytest.mark.parametrize("plan", ["bsp/allreduce/topk:0.2+ef", "local:2", "diloco:2/allreduce/int8+ef"])
def test_any_codec_and_local_methods(plan: str) -> None:
    assert_shared(run_with(plan, steps(5), adam))


@pytest.mark.parametrize("plan", ["bsp", "local:2"])
def test_uneven_ends(plan: str) -> None:
    def act(model: Layer, optimizer: Optimizer, run: Run) -> None:
        steps(2 + 2 * (run.transport.rank % 3))(model, optimizer, run)

    assert_shared(run_with(plan, act))


def test_left_out_passes_and_weights_count_in_groups_too() -> None:
    def act(model: Layer, optimizer: Optimizer, run: Run) -> None:
        rank = run.transport.rank
        optimizer.zero_grad()
        loss = loss_of(model, rank, 0)
        run.skip() if rank == 2 else loss.backward()
        if rank in (0, 2):  # the mean of the group is that of rank 0
            alone = copy.deepcopy(model)
            alone.zero_grad()
            loss_of(alone, 0, 0).backward()
            assert_close([model.expert.weight.grad], [alone.expert.weight.grad])  # type: ignore[list-item]
        optimizer.step()

    assert_shared(run_with("bsp", act))


def test_a_checkpoint_continues() -> None:
    saved: dict[int, Any] = {}
    plan = "bsp/allreduce/topk:0.2+ef"

    def first(model: Layer, optimizer: Optimizer, run: Run) -> None:
        steps(3)(model, optimizer, run)
        state = run.state_dict(gather=True)
        saved[run.transport.rank] = copy.deepcopy([model.state_dict(), optimizer.state_dict(), state])
        steps(2)(model, optimizer, run)

    def second(model: Layer, optimizer: Optimizer, run: Run) -> None:
        states = copy.deepcopy(saved[0])  # one file, of rank 0
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        run.load_state_dict(states[2])
        steps(2)(model, optimizer, run)

    for a, b in zip(run_with(plan, first, adam), run_with(plan, second, adam), strict=True):
        assert same(a, b)


@pytest.mark.parametrize("plan", ["bsp/gossip:ring", "ssp:0/ps", "delayed:1", "lag:0", "local:4,overlap=1"])
def test_what_cannot_keep_groups_says_so(plan: str) -> None:
    with pytest.raises(AttachError, match="shared by groups of ranks"):
        run_with(plan, steps(1))


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(AttachError, match="has no parameter"):
        run_with("bsp", steps(1), groups={"nothing.*": [0, 1, 2, 3]})
    with pytest.raises(AttachError, match="this one"):
        run_with("bsp", steps(1), groups={"expert.*": [0, 1]})

    def worker(transport: Transport) -> None:
        model = Layer(0)
        ranks = [0, 1] if transport.rank == 0 else [0, 1, 2]
        groups = {model.expert: ranks if transport.rank < 3 else [3]}
        attach(model, SGD(model.parameters(), 0.1), "bsp", transport=transport, groups=groups)

    with pytest.raises(MismatchError, match="give all ranks of a group the same list"):
        run_threads(N, worker, deadline_s=20)
