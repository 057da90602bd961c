"""What integrations with trainers share: each rank's part of a checkpoint, and plans that DDP can carry out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tightwire.errors import PlanError
from tightwire.integrations._parts import path_of, write
from tightwire.integrations.ddp import ddp_hook
from tightwire.transport import Single


def test_parts_of_more_workers_do_not_outlive_a_checkpoint_of_fewer(tmp_path: Path) -> None:
    for rank in range(4):
        write({"step": 10}, tmp_path, rank=rank, workers=4)
    (tmp_path / "tightwire_notes.pt").touch()
    for rank in range(2):
        write({"step": 20}, tmp_path, rank=rank, workers=2)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tightwire_0.pt",
        "tightwire_1.pt",
        "tightwire_notes.pt",
    }
    assert all(torch.load(path_of(tmp_path, rank))["step"] == 20 for rank in range(2))


@pytest.mark.parametrize("plan", ["auto", "race:40min"])
def test_ddp_takes_no_plan_that_is_still_to_be_found(plan: str) -> None:
    with pytest.raises(PlanError, match=rf"{plan} finds a plan while .*tightwire race train\.py"):
        ddp_hook(plan, transport=Single())


def test_a_trainers_hook_knows_by_how_much_fp16_scales_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from tightwire.integrations import trainer as module

    made: dict[str, Any] = {}

    def hook(plan: object, **options: Any) -> object:
        made.update(options)
        return SimpleNamespace(register=lambda wrapped: None)

    monkeypatch.setattr(module, "ddp_hook", hook)
    monkeypatch.setattr(module, "init", lambda: None)
    scaler = object()
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(scaler=scaler),
        model_wrapped=DistributedDataParallel.__new__(DistributedDataParallel),
    )
    callback = module.TightwireCallback(trainer, "bsp/allreduce/topk:0.01+ef")
    callback.on_train_begin(SimpleNamespace(world_size=2), SimpleNamespace(global_step=0), None)
    assert made["scaler"] is scaler
