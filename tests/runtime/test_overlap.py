"""Means under way while the next forward runs: nobody reads a parameter before its update, and nothing else changes."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from tests.runtime.training import Net, batch, initialise, job, loss_of, same, sgd, values
from tightwire._attach import attach
from tightwire.errors import AttachError
from tightwire.runtime.overlap.visible import refuse_compiled
from tightwire.transport import Single, Transport, run_threads
from tightwire.transport.base import Work
from tightwire.transport.wrapper import Wrapper

PLANS = (
    "bsp/allreduce:ring/none/p3:64",
    "bsp/allreduce/none/bytescheduler:64,192",
    "bsp/allreduce/none/bytescheduler:64,192,48",
    "bsp/allreduce/none/dear:64",
    "bsp/allreduce/none/tictac",
    "bsp/allreduce/none/pace:128",
)
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


class Late(Wrapper):
    """Sends and sums late, by chance and differently on every rank."""

    def __init__(self, inner: Transport, seed: int = 0) -> None:
        super().__init__(inner)
        self._chance = random.Random(f"{seed} {inner.rank}")

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        return Late(child)

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        time.sleep(self._chance.choice([0, 0, 0, 0.002]))
        return self.inner.isend(tensor, dst, tag)

    def all_reduce(self, tensor: Tensor) -> Work:
        time.sleep(self._chance.choice([0, 0, 0.004]))
        return self.inner.all_reduce(tensor)


class Odd(nn.Module):
    """Shared parameters, control flow, checkpointing and functional reads; remembers what its forwards read."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.sometimes = nn.Linear(6, 6)
        self.loose = nn.Parameter(torch.empty(6))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.read: list[list[Tensor]] = []
        initialise(self, seed)

    def forward(self, tokens: Tensor, take_part: bool) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = torch.tanh(checkpoint(block, x, use_reentrant=False, preserve_rng_state=False))  # type: ignore[arg-type]
        if take_part:
            x = x + self.sometimes(x)
        x = torch.nn.functional.layer_norm(x, (6,), weight=self.loose)
        out: Tensor = self.head(x)
        self.read.append([p.detach().clone() for p in self.parameters()])
        return out


def train_odd(transport: Transport, plan: str, make: Callable[[Any], Optimizer], *, wait: bool) -> Odd:
    model = Odd(transport.rank)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = make([{"params": decayed}, {"params": others, "lr": 0.003}])
    rates = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    with attach(model, optimizer, plan, transport=Late(transport)) as run:
        for step in range(7):
            generator = torch.Generator().manual_seed(100 * transport.rank + step)
            tokens = torch.randint(0, 11, (3, 4), generator=generator)
            optimizer.zero_grad()
            if step == 3:
                with run.accumulate():
                    model(tokens.flip(0), True).square().mean().backward()
            model(tokens, step % 3 == transport.rank).square().mean().backward()
            if wait:
                run.wait()
            optimizer.step()
            rates.step()
            if step == 4:
                model.eval()
                with torch.no_grad():
                    model(tokens, True)
                model.train()
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_ends_where_it_would_without_overlap(name: str) -> None:
    """To the bit, with late transfers: what every forward read, and the parameters at the end."""
    for plan in (PLANS[1], PLANS[2]) if name in ("sgd", "adamw fused") else (PLANS[1],):
        ran = {
            wait: run_threads(
                2,
                lambda t, plan=plan, wait=wait: train_odd(t, plan, OPTIMIZERS[name], wait=wait),
                deadline_s=30,
            )
            for wait in (False, True)
        }
        for overlapped, waited in zip(ran[False], ran[True], strict=True):
            assert len(overlapped.read) == len(waited.read)
            for a, b in zip(overlapped.read, waited.read, strict=True):
                assert same(a, b)
            assert same(values(overlapped), values(waited))
        assert same(values(ran[False][0]), values(ran[False][1]))


@pytest.mark.parametrize("plan", PLANS)
def test_every_schedule_ends_where_it_would_without_overlap(plan: str) -> None:
    def run(transport: Transport, wait: bool) -> list[Tensor]:
        with job(Late(transport), plan, optimizer=OPTIMIZERS["sgd"]) as j:
            for step in range(8):
                j.optimizer.zero_grad()
                loss_of(j.model, j.rank, step).backward()
                if wait:
                    j.run.wait()
                j.optimizer.step()
        return values(j.model)

    overlapped = run_threads(3, lambda t: run(t, False), deadline_s=30)
    waited = run_threads(3, lambda t: run(t, True), deadline_s=30)
    assert all(same(overlapped[0], each) for each in (*overlapped, *waited))


def test_whoever_reads_a_parameter_sees_its_update() -> None:
    """Every way to read that goes through PyTorch, right after the step, with late transfers."""
    readers: list[Callable[[nn.Module], Any]] = [
        lambda m: [p.data.clone() for p in m.parameters()],
        lambda m: [p.clone() for name, p in m.state_dict().items() if name != "again.weight"],  # tied
        lambda m: list(copy.deepcopy(m).parameters()),
        lambda m: torch._foreach_add(list(m.parameters()), 0.0),
        lambda m: [p.numpy(force=True) for p in m.parameters()],
        lambda m: [torch.stack([p, p])[0] for p in m.parameters()],
        lambda m: [torch.tensor(p.tolist()).reshape(p.shape) for p in m.parameters()],
    ]

    def run(transport: Transport) -> None:
        with job(Late(transport), PLANS[1]) as j:
            for step, read in enumerate(readers * 2):
                j.optimizer.zero_grad()
                loss_of(j.model, j.rank, step).backward()
                j.optimizer.step()
                seen = [torch.as_tensor(x).detach().clone() for x in read(j.model)]
                assert same(
                    [x.reshape(p.shape) for x, p in zip(seen, values(j.model), strict=True)], values(j.model)
                )
                assert {type(p) for p in j.model.parameters()} == {nn.Parameter}

    run_threads(2, run, deadline_s=30)


def test_the_optimizers_memory_is_that_after_the_step() -> None:
    def run(transport: Transport) -> None:
        with job(Late(transport), PLANS[1], optimizer=OPTIMIZERS["adam"]) as j:
            j.step(0)  # reads parameters, and so lands
            j.optimizer.zero_grad()
            loss_of(j.model, j.rank, 1).backward()
            j.optimizer.step()
            assert {float(kept["step"]) for kept in j.optimizer.state.values()} == {2.0}
            assert type(j.optimizer.state).__name__ == "defaultdict"
            j.optimizer.zero_grad()
            loss_of(j.model, j.rank, 2).backward()
            j.optimizer.step()
            j.optimizer.state.clear()
            assert not j.optimizer.state
            j.step(3)

    run_threads(2, run, deadline_s=30)


def test_who_holds_the_memory_itself_sees_the_value_of_before() -> None:
    def run(transport: Transport) -> None:
        with job(Late(transport), PLANS[1]) as j:
            weight = j.model.last.weight
            memory = weight.detach().numpy()
            before = memory.copy()
            loss_of(j.model, j.rank, 0).backward()
            j.optimizer.step()
            assert (memory == before).all()
            assert weight.data_ptr() == memory.__array_interface__["data"][0]  # a read through PyTorch
            assert (memory != before).any()

    run_threads(2, run, deadline_s=30)


def test_a_forward_pass_that_is_compiled_is_refused() -> None:
    def run(transport: Transport) -> None:
        model = Net()
        model.last._compiled_call_impl = lambda *_: None  # as after model.last.compile()
        with pytest.raises(AttachError, match=r"module\.compile\(\)"):
            attach(model, sgd(model.parameters()), PLANS[1], transport=transport)
        with pytest.raises(AttachError, match="which compiled code hides"):
            refuse_compiled()

    run_threads(2, run, deadline_s=30)


def test_gradients_touched_before_the_step_are_an_error_and_wait_allows_it() -> None:
    def run(transport: Transport) -> None:
        with job(transport, PLANS[1]) as j:
            loss_of(j.model, j.rank, 0).backward()
            with pytest.raises(AttachError, match=r"run\.wait\(\)"):
                nn.utils.clip_grad_norm_(j.model.parameters(), 0.1)
            with pytest.raises(AttachError, match="read or changed"):
                j.model.last.weight.grad.mul_(2)
            j.run.wait()
            nn.utils.clip_grad_norm_(j.model.parameters(), 0.1)
            j.optimizer.step()
            j.optimizer.zero_grad()
            loss_of(j.model, j.rank, 1).backward()
            j.model.last.weight.grad = torch.zeros(3, 7)
            with pytest.raises(AttachError, match="read or changed"):
                j.optimizer.step()
            j.run.close()

    def quiet(transport: Transport) -> None:
        with pytest.raises(AttachError, match="closed"):
            run(transport)

    run_threads(2, quiet, deadline_s=30)


def test_gradients_may_be_read_after_the_step_and_summed_up_over_steps() -> None:
    def run(transport: Transport, plan: str) -> list[Tensor]:
        with job(Late(transport), plan) as j:
            for step in range(4):
                loss_of(j.model, j.rank, step).backward()
                j.optimizer.step()
                if step == 1:
                    assert j.model.last.weight.grad.isfinite().all()
                if step == 2:
                    j.optimizer.zero_grad(set_to_none=False)
        return values(j.model)

    plans = ("bsp/allreduce:ring", "bsp/allreduce:ring/none/tictac")
    plain, overlapped = (run_threads(2, lambda t, p=p: run(t, p), deadline_s=30)[0] for p in plans)
    assert same(plain, overlapped)


def test_a_step_with_a_nan_anywhere_is_dropped_everywhere() -> None:
    def run(transport: Transport) -> list[list[Tensor]]:
        with job(Late(transport), PLANS[1]) as j:
            for step in range(4):
                j.step(step, factor=float("nan") if (step, j.rank) == (2, 1) else 1.0)
            assert j.run.report().skipped == 1
        return j.seen

    for seen in run_threads(2, run, deadline_s=30):
        assert same(seen[1], seen[2])
        assert not same(seen[2], seen[3])
        assert all(bool(x.isfinite().all()) for x in seen[3])


def test_checkpoints_in_between_continue_to_the_bit() -> None:
    def run(transport: Transport) -> None:
        with job(Late(transport), "bsp/allreduce/bf16+ef/bytescheduler", optimizer=OPTIMIZERS["adam"]) as j:
            for step in range(6):
                if step == 3:
                    saved = copy.deepcopy(
                        (j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict())
                    )
                j.step(step)
        with job(
            Late(transport), "bsp/allreduce/bf16+ef/bytescheduler", optimizer=OPTIMIZERS["adam"]
        ) as again:
            again.model.load_state_dict(saved[0])
            again.optimizer.load_state_dict(saved[1])
            again.run.load_state_dict(saved[2])
            for step in range(3, 6):
                again.step(step)
        assert same(again.seen[-1], j.seen[-1])

    run_threads(2, run, deadline_s=30)


def test_a_scaler_waits_for_the_means() -> None:
    def run(transport: Transport) -> list[Tensor]:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # type: ignore[attr-defined]
        with job(Late(transport), PLANS[1], scaler=scaler) as j:
            for step in range(3):
                j.optimizer.zero_grad()
                scaler.scale(loss_of(j.model, j.rank, step)).backward()
                scaler.step(j.optimizer)
                scaler.update()
        return values(j.model)

    first, second = run_threads(2, run, deadline_s=30)
    assert same(first, second)


def test_what_cannot_be_seen_or_stepped_in_parts_is_refused() -> None:
    class Own(torch.optim.SGD):
        pass

    Own.__module__ = "mine"

    def refused(transport: Transport, model: nn.Module, make: Callable[[Any], Optimizer], said: str) -> None:
        with pytest.raises(AttachError, match=said):
            attach(model, make(model.parameters()), PLANS[1], transport=transport)

    def run(transport: Transport) -> None:
        refused(transport, Net(), lambda p: torch.optim.LBFGS(p), "all gradients together")
        refused(transport, Net(), lambda p: Own(p, lr=0.1), r"not of torch\.optim")

    run_threads(2, run, deadline_s=30)


def test_alone_there_is_nothing_to_overlap() -> None:
    with job(Single(), PLANS[0]) as j:
        j.step(0)
        assert type(j.model.last.weight) is nn.Parameter
        j.model(batch(0, 1))


def test_slices_larger_than_the_model_are_warned_of_once() -> None:
    def train(transport: Transport) -> None:
        model = Net(transport.rank)
        with attach(model, sgd(model.parameters()), "bsp/allreduce/none/p3:1MiB", transport=transport):
            model(batch(transport.rank, 0)).sum().backward()

    with pytest.warns(UserWarning, match="p3:1MiB cuts nothing here: all gradients together are") as said:
        run_threads(2, train)
    assert len(said) == 1
