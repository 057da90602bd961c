"""Whatever a training loop does with gradients, the result is that of one worker on all data."""

from __future__ import annotations

import copy
import json
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.runtime.training import (
    Net,
    adam,
    assert_close,
    batch,
    initialise,
    job,
    loss_of,
    momentum,
    same,
    train_all,
    values,
)
from tightwire._attach import attach
from tightwire.transport import Single, Transport, run_threads

N = 3
EXACT = ["bsp", "bsp/allreduce:ring/none/sequential", "bsp/allreduce:recursive-doubling/none/fusion:64"]
KEEPING_ALL = [*EXACT, "bsp/allreduce/topk:1+ef/fusion:64", "bsp/allreduce/topk:1"]
Loss = Callable[[nn.Module, int, int], Tensor]


def mean_gradients(
    model: nn.Module, loss: Loss = loss_of, steps: tuple[int, ...] = (0,)
) -> list[Tensor | None]:
    """Returns what gradients should be: the mean over workers of the sum over `steps`."""
    model = copy.deepcopy(model)
    for step in steps:
        (sum(loss(model, rank, step) for rank in range(N)) / N).backward()  # type: ignore[union-attr]
    return [p.grad for p in model.parameters()]


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_gradients(model: nn.Module, expected: list[Tensor | None], tolerance: float = 1e-6) -> None:
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=tolerance, atol=tolerance)


def on_threads(worker: Callable[[Transport], Any]) -> list[Any]:
    return run_threads(N, worker, deadline_s=20)


@pytest.mark.parametrize("plan", KEEPING_ALL)
def test_gradients_are_means_after_backward(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            loss_of(j.model, transport.rank, 0).backward()
            assert_gradients(j.model, mean_gradients(j.model))

    on_threads(worker)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("plan", KEEPING_ALL)
def test_accumulation(plan: str, set_to_none: bool) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            for first in (0, 3):
                j.optimizer.zero_grad(set_to_none=set_to_none)
                with j.run.accumulate():
                    loss_of(j.model, transport.rank, first).backward()
                    alone = gradients(j.model)
                    loss_of(j.model, transport.rank, first + 1).backward()
                loss_of(j.model, transport.rank, first + 2).backward()
                assert_gradients(j.model, mean_gradients(j.model, steps=(first, first + 1, first + 2)))
                assert not same(
                    [g for g in alone if g is not None], [g for g in gradients(j.model) if g is not None]
                )
                j.optimizer.step()
        assert j.run.report().rounds == 2

    on_threads(worker)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("plan", KEEPING_ALL)
def test_several_passes_per_step_sum_up(plan: str, set_to_none: bool) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            for first in (0, 2):
                j.optimizer.zero_grad(set_to_none=set_to_none)
                for step in (first, first + 1):
                    loss_of(j.model, transport.rank, step).backward()
                assert_gradients(j.model, mean_gradients(j.model, steps=(first, first + 1)))
                j.optimizer.step()

    on_threads(worker)


@pytest.mark.parametrize("plan", ["bsp/allreduce/int8", "bsp/allreduce/topk:0.3/sequential"])
def test_lossy_passes_sum_up_too(plan: str) -> None:
    """What a pass averaged is not compressed a second time by the next."""

    def worker(transport: Transport) -> None:
        model = Net()
        with job(transport, plan, model=model):
            loss_of(model, transport.rank, 0).backward()
            first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            (model.scale * float(transport.rank)).backward()
            for name, p in model.named_parameters():
                assert p.grad is not None
                added = 1.0 if name == "scale" else 0.0
                torch.testing.assert_close(p.grad, first[name] + added, rtol=0, atol=0.02 * added)

    on_threads(worker)


def test_accumulating_after_an_average_and_stepping_keeps_both() -> None:
    """As under DDP's no_sync: the step is made with the mean plus what this worker added."""

    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            start = values(j.model)
            loss_of(j.model, transport.rank, 0).backward()
            mean = gradients(j.model)
            with j.run.accumulate():
                loss_of(j.model, transport.rank, 1).backward()
            own = torch.autograd.grad(loss_of(j.model, transport.rank, 1), list(j.model.parameters()))
            j.optimizer.step()
            for p, before, m, o in zip(j.model.parameters(), start, mean, own, strict=True):
                assert m is not None
                torch.testing.assert_close(p, before - 0.1 * (m + o), rtol=0, atol=1e-6)

    on_threads(worker)


def test_what_the_user_dropped_does_not_come_back() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            loss_of(j.model, transport.rank, 0).backward()
            with j.run.accumulate():
                loss_of(j.model, transport.rank, 1).backward()
            j.optimizer.zero_grad()
            loss_of(j.model, transport.rank, 2).backward()
            assert_gradients(j.model, mean_gradients(j.model, steps=(2,)))

    on_threads(worker)


def test_autograd_grad_is_left_alone() -> None:
    """A gradient penalty asks for gradients without accumulating them: no round, and `p.grad` stays."""

    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            loss_of(j.model, transport.rank, 0).backward()
            before = gradients(j.model)
            own = torch.autograd.grad(loss_of(j.model, transport.rank, 1), list(j.model.parameters()))
            assert_gradients(j.model, before, tolerance=0)
            assert len(own) == len(before)
        assert j.run.report().rounds == 1

    on_threads(worker)


def test_a_gradient_penalty() -> None:
    def loss(model: nn.Module, rank: int, step: int) -> Tensor:
        x = batch(rank, step).requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            loss(j.model, transport.rank, 0).backward()
            assert_gradients(j.model, mean_gradients(j.model, loss))

    on_threads(worker)


@pytest.mark.parametrize("plan", EXACT)
def test_clipping(plan: str) -> None:
    def worker(transport: Transport) -> tuple[float, list[Tensor]]:
        with job(transport, plan, optimizer=momentum) as j:
            for step in range(3):
                j.optimizer.zero_grad()
                (100 * loss_of(j.model, transport.rank, step)).backward()
                norm = nn.utils.clip_grad_norm_(j.model.parameters(), 1.0)
                j.optimizer.step()
        return float(norm), values(j.model)

    model = Net()
    optimizer = momentum(model.parameters())
    for step in range(3):
        optimizer.zero_grad()
        (100 * sum(loss_of(model, rank, step) for rank in range(N)) / N).backward()  # type: ignore[union-attr]
        expected = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for norm, parameters in on_threads(worker):
        assert norm == pytest.approx(float(expected), rel=1e-4)
        assert_close(parameters, values(model), atol=1e-5)


def grouped(parameters: Any) -> torch.optim.Optimizer:
    first, *others = parameters
    return torch.optim.AdamW(
        [{"params": [first], "lr": 0.1, "weight_decay": 0.3}, {"params": others[:-1], "lr": 0.01}]
    )


def test_parameter_groups_and_parameters_outside_the_optimizer() -> None:
    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, "bsp", optimizer=grouped) as j:
            for step in range(3):
                j.step(step)
        return values(j.model)

    model = Net()
    optimizer = grouped(model.parameters())
    for step in range(3):
        optimizer.zero_grad()
        (sum(loss_of(model, rank, step) for rank in range(N)) / N).backward()  # type: ignore[union-attr]
        optimizer.step()
    for parameters in on_threads(worker):
        assert_close(parameters, values(model), atol=1e-5)


def test_frozen_parameters_stay_and_travel_not() -> None:
    def worker(transport: Transport) -> int:
        model = Net(seed=transport.rank)
        model.last.requires_grad_(False)
        with job(transport, "bsp", model=model) as j:
            frozen = values(model.last)
            j.step(0)
            assert same(values(model.last), frozen)
            assert same(frozen, values(Net(seed=0).last))  # but they are made equal at the start
            assert model.last.weight.grad is None
        return j.run.report().sent_bytes

    everything = train_all(N, "bsp", steps=1)[0].report.sent_bytes
    assert all(sent < everything for sent in on_threads(worker))


class Branches(nn.Module):
    """Two layers, of which a forward pass takes those it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 2)
        self.b = nn.Linear(5, 2)
        initialise(self, 0)

    def forward(self, x: Tensor, path: str) -> Tensor:
        return torch.stack([getattr(self, name)(x) for name in path]).sum(0)


@pytest.mark.parametrize("plan", KEEPING_ALL)
@pytest.mark.parametrize("paths", [("a", "b", "ab"), ("a", "a", "a"), ("b", "ab", "b"), ("ab", "ab", "a")])
def test_parameters_used_on_some_ranks(plan: str, paths: tuple[str, ...]) -> None:
    """They count as zero where they are not used; used nowhere, they stay without a gradient."""

    def loss(model: nn.Module, rank: int, step: int) -> Tensor:
        out: Tensor = model(batch(rank, step), paths[rank])
        return out.square().mean()

    def worker(transport: Transport) -> None:
        with job(transport, plan, model=Branches(), optimizer=adam) as j:
            for step in range(2):
                j.optimizer.zero_grad()
                loss(j.model, transport.rank, step).backward()
                assert_gradients(j.model, mean_gradients(j.model, loss, (step,)))
                j.optimizer.step()

    on_threads(worker)


def test_a_pass_that_misses_what_another_reached() -> None:
    """Two losses of one step over different parameters, in different order of use."""

    def worker(transport: Transport) -> None:
        with job(transport, "bsp", model=Branches()) as j:
            for path in ("a", "ab", "b"):
                j.model(batch(transport.rank, 0), path).square().mean().backward()
            expected = mean_gradients(
                j.model, lambda m, r, s: m(batch(r, 0), ("a", "ab", "b")[s]).square().mean(), (0, 1, 2)
            )
            assert_gradients(j.model, expected)

    on_threads(worker)


def test_a_leftover_arrives_although_nobody_used_the_parameter() -> None:
    def worker(transport: Transport) -> None:
        model = Branches()
        with job(transport, "bsp/allreduce/topk:0.1+ef/wfbp", model=model) as j:
            model(batch(transport.rank, 0), "ab").square().mean().backward()
            before = j.run.state_dict()["engine"]["memory"]["a.weight"]["ef"]
            j.optimizer.zero_grad()
            model(batch(transport.rank, 1), "b").square().mean().backward()
            after = j.run.state_dict()["engine"]["memory"]["a.weight"]["ef"]
            assert model.a.weight.grad is not None
            assert int((before != after).sum()) == 1
            assert model.a.weight.grad[before != after].all()

    on_threads(worker)


class Mixed(nn.Module):
    """Three dtypes in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 7)
        self.b = nn.Linear(7, 7).bfloat16()
        self.c = nn.Linear(7, 3).double()
        initialise(self, 0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(torch.tanh(self.b(torch.tanh(self.a(x)).bfloat16())).double())
        return out


@pytest.mark.parametrize("plan", [*KEEPING_ALL, "bsp/allreduce/bf16+ef/sequential"])
def test_mixed_dtypes(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan, model=Mixed(), optimizer=adam) as j:
            j.step(0)
            j.optimizer.zero_grad()
            loss_of(j.model, transport.rank, 1).backward()
            assert_gradients(j.model, mean_gradients(j.model, steps=(1,)), tolerance=0.02)
            assert [p.grad.dtype for p in j.model.parameters() if p.grad is not None] == [
                p.dtype for p in j.model.parameters()
            ]

    on_threads(worker)


class Pictures(nn.Module):
    """A convolution in channels-last memory, a batch norm, and a checkpointed head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        initialise(self, 0)

    def forward(self, rank: int) -> Tensor:
        x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(rank))
        x = self.norm(self.conv(x.to(memory_format=torch.channels_last))).mean((2, 3))
        out: Tensor = checkpoint(
            lambda h: torch.tanh(self.head(h)), x, use_reentrant=False, preserve_rng_state=False
        )
        return out


def picture_loss(model: nn.Module, rank: int, step: int) -> Tensor:
    out: Tensor = model(rank)
    return (out - rank).square().mean()


@pytest.mark.parametrize("plan", EXACT)
def test_channels_last_and_checkpointing(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan, model=Pictures()) as j:
            picture_loss(j.model, transport.rank, 0).backward()
            assert_gradients(j.model, mean_gradients(j.model, picture_loss))
            weight = j.model.conv.weight  # type: ignore[union-attr]
            assert weight.grad is not None
            assert weight.grad.stride() == weight.stride()

    on_threads(worker)


class Segments(nn.Module):
    """Every layer is in a reentrant checkpoint, so that each has its gradient in a backward pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        initialise(self, 0)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(checkpoint(layer, x, use_reentrant=True, preserve_rng_state=False))  # type: ignore[arg-type]
        return x


@pytest.mark.parametrize("plan", [*EXACT, "bsp/allreduce:ring/none/p3"])
def test_nested_passes_of_one_backward_are_one_round(plan: str) -> None:
    def loss(model: nn.Module, rank: int, step: int) -> Tensor:
        out: Tensor = model(batch(rank, step).requires_grad_())
        return out.square().mean()

    def worker(transport: Transport) -> int:
        with job(transport, plan, model=Segments()) as j:
            for step in range(2):
                j.optimizer.zero_grad()
                loss(j.model, transport.rank, step).backward()
                j.run.wait()
                assert_gradients(j.model, mean_gradients(j.model, loss, (step,)))
                j.optimizer.step()
        return j.run.report().rounds

    assert on_threads(worker) == [2] * N


def test_a_pass_that_raised_before_any_gradient_leaves_the_next_whole() -> None:
    def fail(gradient: Tensor) -> Tensor:
        raise ValueError("once")

    def worker(transport: Transport) -> None:
        model = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
        initialise(model, 0)
        with job(transport, "bsp", model=model):
            handle = model[0].register_forward_hook(lambda m, args, out: out.register_hook(fail) and None)
            with pytest.raises(ValueError, match="once"):
                loss_of(model, transport.rank, 0).backward()
            handle.remove()
            loss_of(model, transport.rank, 0).backward()
            assert_gradients(model, mean_gradients(model))

    on_threads(worker)


def test_several_passes_are_told_how_to_be_one(caplog: pytest.LogCaptureFixture) -> None:
    def worker(transport: Transport) -> int:
        with job(transport, "bsp") as j:
            for _ in range(3):
                for step in (0, 1):
                    loss_of(j.model, transport.rank, step).backward()
                j.optimizer.step()
            for _ in range(3):
                with j.run.accumulate():
                    loss_of(j.model, transport.rank, 0).backward()
                loss_of(j.model, transport.rank, 1).backward()
                j.optimizer.step()
        return j.run.report().rounds

    assert on_threads(worker) == [9] * N
    assert sum("run.accumulate()" in message for message in caplog.messages) == N


def test_reentrant_checkpointing_costs_rounds_not_truth() -> None:
    def loss(model: nn.Module, rank: int, step: int) -> Tensor:
        out: Tensor = checkpoint(
            model, batch(rank, step).requires_grad_(), use_reentrant=True, preserve_rng_state=False
        )
        return out.square().mean()

    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            loss(j.model, transport.rank, 0).backward()
            assert_gradients(j.model, mean_gradients(j.model, loss))

    on_threads(worker)


@pytest.mark.parametrize("buffers", ["start", "every-step"])
def test_buffers(buffers: str) -> None:
    def worker(transport: Transport) -> list[Tensor]:
        model = Pictures()
        model.norm.running_mean.fill_(float(transport.rank))  # type: ignore[union-attr]
        with job(transport, "bsp", model=model, buffers=buffers) as j:
            assert not model.norm.running_mean.any()  # type: ignore[union-attr]
            picture_loss(model, transport.rank, 0).backward()
            j.optimizer.step()
        report = j.run.report()
        assert report.sent_bytes == report.planned_bytes
        assert ("buffers" in str(report)) == (report.buffer_bytes > 0)
        assert model.norm.num_batches_tracked == 1
        return [b.clone() for b in model.buffers()]

    results = on_threads(worker)
    assert all(same(kept, results[0]) for kept in results) == (buffers == "every-step")


def test_lbfgs_with_a_closure() -> None:
    def lbfgs(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)

    def minimise(
        model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> list[Tensor]:
        def closure() -> float:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value.item()

        for _ in range(2):
            optimizer.step(closure)
        return values(model)

    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, "bsp", optimizer=lbfgs) as j:
            parameters = minimise(j.model, j.optimizer, lambda: loss_of(j.model, transport.rank, 0))
            assert j.run.step == 2
        assert j.run.report().rounds == 8
        assert j.run.report().sent_bytes == j.run.report().planned_bytes
        return parameters

    model = Net()
    expected = minimise(
        model,
        lbfgs(model.parameters()),
        lambda: sum(loss_of(model, rank, 0) for rank in range(N)) / N,  # type: ignore[arg-type,return-value]
    )
    for parameters in on_threads(worker):
        assert_close(parameters, expected, atol=1e-4)


def scaled_step(model: nn.Module, optimizer: Any, scaler: Any, loss: Tensor) -> None:
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("plan", [*EXACT, "bsp/allreduce/topk:1+ef", "bsp/allreduce/bf16+ef", "local:2"])
def test_amp_with_a_gradient_scaler(plan: str) -> None:
    """bfloat16 autocast; an Inf on one rank is skipped by all, and all halve the scale."""

    def worker(transport: Transport) -> list[Tensor]:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with job(transport, plan, scaler=scaler) as j:
            for step in range(4):
                before = values(j.model)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loss_of(j.model, transport.rank, step)
                overflows = step == 2 and transport.rank == 1
                scaled_step(j.model, j.optimizer, scaler, loss * (float("inf") if overflows else 1.0))
                if plan.startswith("bsp"):
                    assert scaler.get_scale() == (1024.0 if step < 2 else 512.0)
                    assert same(values(j.model), before) == (step == 2)
            if plan.startswith("bsp"):
                assert j.run.step == 3
                assert j.run.report().skipped == 1
        return values(j.model)

    results = on_threads(worker)
    assert all(p.isfinite().all() for p in results[0])
    assert all(same(parameters, results[0]) for parameters in results)


def test_leftovers_are_kept_unscaled() -> None:
    """The loss scale changes between steps; what was left over before means the same after."""

    def worker(transport: Transport) -> list[Tensor]:
        plain, scaled = Net(), Net()
        for model, scale, growth_interval in ((plain, 1.0, 1000), (scaled, 4096.0, 2)):
            scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
            with job(transport, "bsp/allreduce/topk:0.3+ef", model=model, scaler=scaler) as j:
                for step in range(6):
                    scaled_step(j.model, j.optimizer, scaler, loss_of(j.model, transport.rank, step))
        assert_close(values(plain), values(scaled), atol=1e-6)
        return values(plain)

    on_threads(worker)


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    counts = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    counts += [
        len(p._backward_hooks or {}) + len(p._post_accumulate_grad_hooks or {}) for p in model.parameters()
    ]
    return [*counts, len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)]


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("fails", [False, True])
def test_hooks_and_threads_leave_with_the_context(size: int, fails: bool) -> None:
    def worker(transport: Transport) -> None:
        model = Net()
        optimizer = adam(model.parameters())
        before = hooks_of(model, optimizer)
        for plan in ("bsp", "local:2", "bsp/allreduce/int8+ef"):
            try:
                with attach(model, optimizer, plan, transport=transport) as run:
                    assert hooks_of(model, optimizer) != before
                    loss_of(model, transport.rank, 0).backward()
                    optimizer.step()
                    if fails:
                        raise KeyError("the loop broke")
            except KeyError:
                assert fails
            assert hooks_of(model, optimizer) == before
            run.close()
            optimizer.zero_grad()
            loss_of(model, transport.rank, 0).backward()
            assert_gradients(
                model, [*torch.autograd.grad(loss_of(model, transport.rank, 0), list(model.parameters()))]
            )

    run_threads(size, worker, deadline_s=20)
    assert not [t for t in threading.enumerate() if t.name == "tightwire-communication"]


def test_an_attached_model_can_be_copied() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            j.step(0)
            average = torch.optim.swa_utils.AveragedModel(j.model)
            average.update_parameters(j.model)
            copied = copy.deepcopy(j.model)
            loss_of(copied, transport.rank, 0).backward()  # its own, no round
            with job(transport, "bsp", model=copied) as other:
                other.step(1)
        assert j.run.report().rounds == 1

    on_threads(worker)


def test_adopting_another_plan_between_steps() -> None:
    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, "local:4") as j:
            for step, plan in enumerate(
                ("local:4", "bsp", "bsp/allreduce/int8+ef", "local:2/allreduce/topk:0.5")
            ):
                j.run.adopt(type(j.run.plan).parse(plan))
                j.step(2 * step)
                j.step(2 * step + 1)
        report = j.run.report()
        assert report.sent_bytes == report.planned_bytes
        assert report.plan == "local:2/allreduce/topk:0.5"
        assert report.steps == 8
        return values(j.model)

    with pytest.warns(UserWarning, match=r"leftovers and momenta of bsp/allreduce/int8\+ef are dropped"):
        results = on_threads(worker)
    assert all(same(parameters, results[0]) for parameters in results)


@pytest.mark.parametrize("plan", ["bsp/allreduce/int8+ef", "local:2/allreduce/topk:0.2"])
def test_the_trace_has_three_tracks(plan: str, tmp_path: pathlib.Path) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            for step in range(2):
                j.step(step)
        j.run.trace(tmp_path / f"{transport.rank}.json")

    on_threads(worker)
    for rank in range(N):
        events = json.loads((tmp_path / f"{rank}.json").read_text())["traceEvents"]
        assert {e["ph"] for e in events} == {"M", "X"}
        assert {e["pid"] for e in events} == {rank}
        names = {e["args"]["name"] for e in events if e["ph"] == "M"}
        assert names == {f"rank {rank}", "compute", "communication", "codec"}
        spans = [e for e in events if e["ph"] == "X"]
        assert {e["cat"] for e in spans} == {"compute", "communication", "codec"}
        assert {"forward", "optimizer", "bucket 0"} <= {e["name"] for e in spans}
        assert all(e["dur"] >= 0 for e in spans)


def test_the_report_in_words() -> None:
    report = train_all(N, "bsp/allreduce/int8+ef", steps=4)[1].report
    text = str(report)
    assert "bsp/allreduce/int8+ef" in text
    assert "4 in 4 rounds" in text
    assert f"{report.sent_bytes:,} (planned {report.planned_bytes:,})" in text
    assert "skipped" not in text
    assert "buffers" not in text
    assert report.exposed_s >= 0
    assert report.step_s is not None


def test_the_report_after_resuming_counts_this_run() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            j.step(0)
            state = j.run.state_dict()
            state["step"] = 1000
        with job(transport, "bsp") as j:
            j.run.load_state_dict(state)
            j.step(0)
            assert j.run.step == 1001
        assert j.run.report().steps == 1

    on_threads(worker)


def test_a_world_of_one_says_so() -> None:
    with job(Single(), "bsp/allreduce/int8+ef") as j:
        with j.run.accumulate():
            j.step(0)
        j.run.load_state_dict(j.run.state_dict())
        j.run.adopt(type(j.run.plan).parse("local:2"))
    report = j.run.report()
    assert (report.workers, report.steps, report.rounds, report.sent_bytes) == (1, 1, 0, 0)
    assert "rounds" not in str(report)
