"""What training loops do beside a step, on the traced device: several passes, clipping, a checkpoint in between."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.traced.training import TRACED, Net, Watched, same, sgd
from tightwire._attach import attach
from tightwire.devices.traced import KIND
from tightwire.transport import Transport, run_threads

PLANS = ["bsp/allreduce:ring/int8+ef", "bsp/allreduce/topk:0.1+ef+momentum:0.9", "local:2/allreduce/int8+ef"]


def trained(plan: str, kind: str) -> list[list[Tensor]]:
    """Returns each rank's parameters: two steps of two passes, clipped; saved, and two more in a fresh run."""

    def work(transport: Transport) -> list[Tensor]:
        device, stack = torch.device(kind), contextlib.ExitStack()
        with stack:
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            if kind == KIND:
                stack.enter_context(TRACED.side(device))
                transport = Watched(transport)
            saved: list[Any] = []
            for part in range(2):
                model = Net().to(device)
                optimizer = sgd(model.parameters())
                with attach(model, optimizer, plan, transport=transport.channel()) as run:
                    if saved:
                        model.load_state_dict(saved[0])
                        optimizer.load_state_dict(saved[1])
                        run.load_state_dict(saved[2])
                    for step in range(2):
                        for inner in (0, 1):
                            drawn = torch.Generator().manual_seed(
                                100 * transport.rank + 10 * part + 2 * step + inner
                            )
                            x = torch.randn(4, 6, generator=drawn).to(device)
                            with run.accumulate() if not inner else contextlib.nullcontext():
                                (model(x) - transport.rank).square().mean().backward()
                        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                        optimizer.step()
                        optimizer.zero_grad()
                    saved = [
                        {name: value.cpu().clone() for name, value in model.state_dict().items()},
                        optimizer.state_dict(),
                        run.state_dict(),
                    ]
                    assert {t.device.type for t in tensors(saved[2])} <= {"cpu"}
            return [p.detach().cpu() for p in model.parameters()]

    return run_threads(2, work, deadline_s=60)


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for value in inner for tensor in tensors(value)]


@pytest.mark.parametrize("plan", PLANS)
def test_passes_clipping_and_a_checkpoint_change_no_number(plan: str) -> None:
    expected = trained(plan, "cpu")
    TRACED.restart(seed=3, haste=1.0)
    found = trained(plan, KIND)
    assert not TRACED.races
    assert same(expected, found)
