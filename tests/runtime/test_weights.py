"""Means over what workers weigh: however their data ends, whoever dies, and from a checkpoint on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.lobby import Elastic, Worker
from tests.runtime.training import Job, assert_close, job, loss_of, same, values
from tightwire._attach import attach
from tightwire.errors import AttachError
from tightwire.runtime import Run
from tightwire.transport import Transport, run_threads

WEIGHTS = (100.0, 300.0, 1e-6)


class OneHot(nn.Module):
    """Parameters whose gradient is 1 at the place of the worker, so that a mean tells what each weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(3) for _ in range(4))


def step(model: OneHot, optimizer: torch.optim.Optimizer, run: Run, number: int) -> None:
    optimizer.zero_grad()
    run.weigh(WEIGHTS[number])
    sum(weight[number] for weight in model.weights).backward()  # type: ignore[union-attr]
    optimizer.step()


def made(model: OneHot) -> list[list[float]]:
    return [weight.neg().tolist() for weight in model.weights]


@pytest.mark.parametrize("plan", ["bsp", "bsp/allreduce/none/dear", "delayed:1", "local:2"])
def test_weights_count_alike_after_workers_have_ended_unevenly(plan: str) -> None:
    """Of the rounds that one makes alone the other, which is finished, learns what is usual."""

    def train(transport: Transport) -> list[list[float]]:
        model = OneHot()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with attach(model, optimizer, plan, transport=transport) as run:
            for _ in range((4, 2)[transport.rank]):
                step(model, optimizer, run, transport.rank)
            run.finish()
            before = made(model)
            step(model, optimizer, run, transport.rank)
            run.finish()
        return [[b - a for a, b in zip(x, y, strict=True)] for x, y in zip(before, made(model), strict=True)]

    for moved in run_threads(2, train):
        for first, second, _ in moved:
            assert second == pytest.approx(3 * first)
            assert first > 0


def test_every_fragment_of_the_last_round_is_weighed() -> None:
    def train(transport: Transport) -> list[list[float]]:
        model = OneHot()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with attach(model, optimizer, "local:4/allreduce/none/streaming:2", transport=transport) as run:
            for _ in range(3):
                step(model, optimizer, run, transport.rank)
        return made(model)

    for moved in run_threads(2, train):
        for first, second, _ in moved:
            assert second == pytest.approx(3 * first)
            assert first > 0.5


@pytest.mark.parametrize(
    ("plan", "dies_at"),
    [
        *(("local:2/allreduce:ring", at) for at in (6, 8, 10, 12)),
        *(("bsp/allreduce:ring/none/dear", at) for at in (8, 10, 12)),
    ],
)
def test_weights_count_in_the_round_after_a_death(plan: str, dies_at: int) -> None:
    """Also those that were told before the forward pass that noticed it."""

    def train(transport: Transport, worker: Worker) -> list[list[float]]:
        model = OneHot()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with attach(model, optimizer, plan, transport=transport) as run:
            while run.step < 6:
                step(model, optimizer, run, int(worker.name[-1]))
            run.finish()
        return made(model)

    ends = Elastic(train, start=3, dies_at=[None, None, dies_at]).join()
    for first, second, _ in ends[0]:
        assert second == pytest.approx(3 * first)
        assert first > 1


def test_leftovers_keep_their_size_in_a_checkpoint() -> None:
    plan = "bsp/allreduce/topk:0.2+ef"

    def go_on(j: Job, steps: range) -> None:
        for number in steps:
            j.optimizer.zero_grad()
            j.run.weigh(1000.0 + 100 * j.rank + number)
            loss_of(j.model, j.rank, number).backward()
            j.optimizer.step()

    def train(transport: Transport) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        with job(transport, plan) as straight:
            go_on(straight, range(4))
            model, kept = copy.deepcopy(straight.model), straight.run.state_dict()
            go_on(straight, range(4, 8))
        with job(transport, plan, model=model) as resumed:
            resumed.run.load_state_dict(kept)
            go_on(resumed, range(4, 8))
        return values(straight.model), values(resumed.model)

    for straight, resumed in run_threads(2, train):
        assert same(straight, resumed)


@pytest.mark.parametrize(
    "plan",
    [
        "bsp/allreduce/topk:0.3+ef",
        "bsp/allreduce/topk:0.3+momentum:0.9",
        "bsp/allreduce/int8+ef/bytescheduler",
        "delayed:1/allreduce/topk:0.3+ef",
    ],
)
def test_it_makes_no_difference_in_which_units_workers_weigh(plan: str) -> None:
    """What the first round left over is in units that nobody knew to be usual then."""

    def train(transport: Transport, unit: float) -> list[torch.Tensor]:
        with job(transport, plan, optimizer=lambda p: torch.optim.SGD(p, lr=0.01)) as j:
            for number in range(6):
                j.optimizer.zero_grad()
                j.run.weigh(unit * (1 + 0.1 * j.rank + 0.05 * number))
                loss_of(j.model, j.rank, number).backward()
                j.optimizer.step()
        return values(j.model)

    ones, tokens = (run_threads(2, lambda t, unit=unit: train(t, unit))[0] for unit in (1.0, 4096.0))
    assert_close(ones, tokens, atol=1e-4)


@pytest.mark.parametrize(
    "plan", ["bsp/allreduce/topk:0.2+ef+momentum:0.9", "bsp/allreduce/int4+ef/bytescheduler"]
)
def test_what_is_left_over_keeps_its_size_when_others_skip_a_pass(plan: str) -> None:
    """Those that count weigh as before: whoever leaves out a pass makes nobody's leftovers and momenta grow."""

    def train(transport: Transport) -> float:
        with job(transport, plan, optimizer=lambda p: torch.optim.SGD(p, lr=0.01)) as j:
            for number in range(5):
                j.optimizer.zero_grad()
                if (j.rank, number) == (1, 2):
                    j.run.skip()
                else:
                    loss_of(j.model, j.rank, number).backward()
                j.optimizer.step()
            unit: float = j.run.state_dict()["engine"]["unit"]
        return unit

    assert run_threads(3, train) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "compression", ["sign+momentum:0.9", "meansign+lion", "dion:1", "median", "dct:2+ef:0.9+signed"]
)
def test_what_gives_a_direction_or_a_middle_refuses_weights(compression: str) -> None:
    def train(transport: Transport) -> None:
        with (
            job(transport, f"bsp/allreduce/{compression}") as j,
            pytest.raises(AttachError, match="counts alike"),
        ):
            j.run.weigh(3.0)

    run_threads(2, train)
    run_threads(1, lambda t: plain(t, compression))


def plain(transport: Transport, compression: str) -> None:
    with job(transport, f"bsp/allreduce/{compression}") as j:
        j.run.weigh(3.0)  # a world of one has nobody to be weighed against


@pytest.mark.parametrize(
    "plan",
    [
        "bsp/allreduce/sign",
        "bsp/allreduce/sign+momentum:0.9",
        "bsp/allreduce/dct:2+ef:0.9+signed",
        "delayed:1/allreduce/sign",
    ],
)
def test_a_sign_is_one_though_some_workers_bring_nothing(plan: str) -> None:
    """Who skips a pass, or is finished, abstains: what the others say is no larger for it."""

    def train(transport: Transport) -> set[float]:
        seen: set[float] = set()
        with job(transport, plan, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)) as j:
            for number in range(6 if j.rank == 0 else 3):
                j.optimizer.zero_grad()
                if (j.rank, number) == (1, 1) and plan.startswith("bsp"):
                    j.run.skip()
                else:
                    loss_of(j.model, j.rank, number).backward()
                j.optimizer.step()
                gradients = [p.grad.abs().flatten() for p in j.model.parameters() if p.grad is not None]
                seen |= {float(size) for gradient in gradients for size in gradient}
        return seen - {0.0}

    assert run_threads(3, train, deadline_s=20) == [{1.0}] * 3


def test_a_direction_keeps_its_length_though_some_workers_bring_nothing() -> None:
    """Of what is no matrix it is the mean of those who bring something."""

    def train(transport: Transport) -> list[tuple[float, float]]:
        seen = []
        with job(transport, "bsp/allreduce/dion:1", optimizer=lambda p: torch.optim.SGD(p, lr=0.0)) as j:
            for number in range(3):
                j.optimizer.zero_grad()
                j.run.skip() if (j.rank, number) == (1, 1) else j.model.first.weight.sum().add(  # type: ignore[union-attr]
                    j.model.first.bias.sum() * 6  # type: ignore[union-attr]
                ).backward()
                j.optimizer.step()
                matrix, vector = j.model.first.weight.grad, j.model.first.bias.grad  # type: ignore[union-attr]
                seen.append((float(matrix.norm()), float(vector.mean())))  # type: ignore[operator,union-attr]
        return seen

    for seen in run_threads(3, train, deadline_s=20):
        for length, mean in seen:
            assert length == pytest.approx((7 / 5) ** 0.5, rel=1e-3)
            assert mean == pytest.approx(6.0)
