"""Measuring watches and changes nothing."""

import time

import pytest
import torch
from torch import Tensor, nn

from tightwire import profile
from tightwire.errors import AttachError
from tightwire.profile import Profiler
from tightwire.profile.model import Marks
from tightwire.profile.values import MAX_CONTENTION


class Sleep(torch.autograd.Function):
    """An identity that takes its time."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        time.sleep(0.01)
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        time.sleep(0.02)
        return gradient


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 2)
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.last(Sleep.apply(self.first(x)))}


def build() -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model: Net, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(5, 4))["y"].square().mean().backward()
    optimizer.step()


def test_times_and_order_are_seen() -> None:
    model, optimizer = build()
    measured = profile.measure(model, optimizer, lambda: train(model, optimizer), steps=3)
    ready_s = {p.name: p.ready_s for p in measured.parameters}
    assert measured.forward_s >= 0.01
    assert measured.backward_s >= 0.02
    assert ready_s["first.weight"] - ready_s["last.weight"] >= 0.02
    assert ready_s["unused.weight"] == pytest.approx(measured.backward_s, rel=0.2)
    assert not any("frozen" in name for name in ready_s)
    assert list(ready_s.values()) == sorted(ready_s.values())
    assert {p.name: p.numel for p in measured.parameters}["first.weight"] == 32


def test_nothing_changes_and_no_hook_stays() -> None:
    plain, watched = build(), build()
    for _ in range(3):
        train(*plain)
    profile.measure(*watched, lambda: train(*watched), steps=2, warm_up=1)
    for a, b in zip(plain[0].parameters(), watched[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert not watched[0]._forward_hooks
    assert not any(p._post_accumulate_grad_hooks for p in watched[0].parameters())


def test_of_several_backward_passes_the_last_counts() -> None:
    model, optimizer = build()

    def step() -> None:
        for _ in range(3):
            model(torch.ones(5, 4))["y"].sum().backward()
        optimizer.step()

    measured = profile.measure(model, optimizer, step, steps=2, warm_up=0)
    assert measured.forward_s >= 2 * 0.03
    assert measured.backward_s == pytest.approx(0.02, rel=0.5)


def test_a_loop_without_steps_is_refused() -> None:
    model, optimizer = build()
    with Profiler(model, optimizer) as profiler:
        train(model, optimizer)
    with pytest.raises(AttachError, match="1 training steps were seen"):
        profiler.profile()


def test_codecs_are_timed_without_their_stages() -> None:
    costs = profile.measure_codecs(["none", "int8+ef", "int8", "topk:0.01+ef"], numel=20_000, samples=2)
    assert [cost.compression for cost in costs] == ["none", "int8", "topk:0.01"]
    assert all(cost.encode_s_per_element + cost.fixed_s > 0 for cost in costs)
    assert profile.measure_pass(numel=20_000, samples=2) > 0


def test_a_backward_pass_that_raised_spoils_no_later_step() -> None:
    model, optimizer = build()

    def fail(gradient: Tensor) -> None:
        raise RuntimeError("no gradient")

    with Profiler(model, optimizer) as profiler:
        hook = model.first.weight.register_hook(fail)
        with pytest.raises(RuntimeError, match="no gradient"):
            model(torch.ones(5, 4))["y"].sum().backward()
        hook.remove()
        for _ in range(3):
            train(model, optimizer)
    assert profiler.profile(warm_up=1).backward_s >= 0.02


def test_a_thread_that_hardly_ran_gives_a_profile_that_can_be_kept() -> None:
    model, optimizer = build()
    profiler = Profiler(model, optimizer)
    waits = Marks(begin_s=0.0, backward_s=1.0, backward_end_s=2.0, end_s=3.0, processor_s=1e-6)
    profiler._steps = [waits]
    assert profiler.profile(warm_up=0).contention == MAX_CONTENTION
