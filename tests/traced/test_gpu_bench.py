"""The script that GPUs are measured with, walked on the traced device."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from tests.traced.training import TRACED
from tests.transport.fake_nccl import FakeCommunicator, Hub
from tightwire.bench import gpu_processes
from tightwire.bench.gpu import machine, page
from tightwire.bench.gpu_alone import world_of_one
from tightwire.bench.gpu_kernels import kernels_right
from tightwire.bench.gpu_processes import nccl_alone
from tightwire.bench.gpu_setting import EMULATED, GpuPart


@pytest.mark.parametrize("part", [kernels_right, world_of_one])
def test_parts_hold_on_the_traced_device(part) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    TRACED.restart()
    found = part(EMULATED)
    assert found.ok, found.said
    assert not TRACED.races


def test_a_page_says_what_was_emulated_and_what_does_not_hold() -> None:
    parts = [asdict(replace(GpuPart(name="", ok=False, said="a | b"), name="overlap"))]
    parts[0]["rows"] = [
        {"plan": "bsp", "step_s": 0.0125, "losses": [2.0, 1.5], "sent_bytes": 2_500_000, "digest": [1.0]},
        {"plan": "ddp", "step_s": 0.02, "losses": [2.0, 1.5]},
    ]
    text = page({"machine": machine(EMULATED), "emulated": True, "parts": parts})
    assert "| plan | step (ms) | losses | sent (MB) |\n|---|---:|---|---:|" in text
    assert "| bsp | 12.500 | 2 → 1.5 | 2.500 |\n| ddp | 20.000 | 2 → 1.5 | – |" in text
    assert "no speed is measured" in text
    assert "| overlap | NO | a / b | 0 |" in text


def test_nccl_alone_sends_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = FakeCommunicator(Hub(1), 0)
    monkeypatch.setattr(gpu_processes, "connect_nccl", lambda transport, name, at: alone)
    assert nccl_alone(torch.device("cpu")) == []
