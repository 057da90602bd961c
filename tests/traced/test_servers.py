"""Shards of parameter servers on a device: which way messages go, what goes on with a checkpoint, what goes wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.traced.over_nccl import nccl
from tests.traced.training import TRACED, Net, Watched, same, train
from tightwire._attach import attach
from tightwire.devices.traced import KIND
from tightwire.errors import PeerError
from tightwire.transport import Transport, run_threads

PLAN = "ssp:0/ps:shards=2,on_device=true/int8+ef"


def test_messages_of_servers_go_by_pinned_memory_where_others_go_by_nccl() -> None:
    expected = train(PLAN, "cpu")
    TRACED.restart(seed=1, haste=0.5)
    assert same(expected, train(PLAN, "traced", reach=nccl()))
    assert not TRACED.races


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, foreach=False)


def go_on(kind: str, first: str, then: str, optimizer: Any, attached_at: int = 0) -> list[list[Tensor]]:
    """Returns parameters after two steps under one plan and two under another, by a checkpoint on the host."""

    def work(transport: Transport) -> list[Tensor]:
        device = torch.device(kind)
        saved = None
        with torch.autograd.set_multithreading_enabled(False), TRACED.side(torch.device(KIND)):
            transport = Watched(transport) if kind == KIND else transport
            model = Net().to(device)
            steps_with = optimizer(model.parameters())
            for step in range(attached_at):  # alike on all ranks, as before an attach in mid-training
                one_step(model, steps_with, 0, step, device)
            for part, plan in enumerate((first, then)):
                with attach(model, steps_with, plan, transport=transport) as run:
                    if saved is not None:
                        run.load_state_dict(saved)
                    for step in (2 * part, 2 * part + 1):
                        one_step(model, steps_with, transport.rank, step, device)
                    saved = run.state_dict()
            return [p.detach().cpu() for p in model.parameters()]

    return run_threads(2, work, deadline_s=60)


def one_step(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int, at: torch.device) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(100 * rank + step)).to(at)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("then", ["ssp:0/ps:shards=2,on_device=true", "ssp:0/ps:shards=2"])
def test_a_checkpoint_goes_on_on_the_device_and_on_the_host(then: str) -> None:
    plans = "ssp:0/ps:shards=2,on_device=true", then
    expected = go_on("cpu", *plans, adam, attached_at=1)
    TRACED.restart(seed=3, haste=2.0)
    found = go_on(KIND, *plans, adam, attached_at=1)
    assert not TRACED.races
    assert same(expected, found)


def test_a_device_without_memory_for_a_shards_optimizer_is_told_on_all_ranks() -> None:
    class Full(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            if any(p.grad is not None for group in self.param_groups for p in group["params"]):
                raise torch.OutOfMemoryError("16.00 GiB")

    TRACED.restart()
    with pytest.raises(PeerError, match=r"which serves a shard, failed: .*OutOfMemoryError: 16\.00 GiB"):
        train(PLAN, "traced", optimizer=lambda parameters: Full(parameters, lr=0.1))
