"""Tightwire inside Ray Train: checkpoints that hold every worker's part, for the function of a `TorchTrainer`.

Training itself needs nothing: `TorchTrainer` starts a process group, which `tightwire.init` joins. Leave out
`ray.train.torch.prepare_model`, which would wrap the model in DDP; or stay with it and use `tightwire.ddp_hook`.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tightwire.errors import AttachError
from tightwire.integrations._extras import needed
from tightwire.integrations._parts import read, write
from tightwire.runtime import Run

with needed("ray", extra="ray"):
    from ray import train

SHARED = "tightwire.pt"


def report(
    metrics: Mapping[str, Any],
    run: Run,
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    **extra: Any,
) -> None:
    """Reports metrics to Ray with a checkpoint of the model, the optimizer and every worker's part of the run.

    Args:
        metrics: numbers; Ray keeps rank 0's.
        run: of `tightwire.attach`.
        model: that is attached.
        optimizer: its own, or all of them.
        extra: what `resume` is to return, such as the epoch; of tensors and plain values.

    Contract: every worker, between two steps; blocks until all have arrived.
    """
    optimizers = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    with tempfile.TemporaryDirectory() as folder:
        write(run.own_state(), folder, rank=run.transport.rank, workers=run.transport.size)
        if run.transport.rank == 0:
            states = [member.state_dict() for member in optimizers]
            shared = {"model": model.state_dict(), "optimizers": states, "extra": extra, "step": run.step}
            torch.save(shared, pathlib.Path(folder) / SHARED)
        train.report(dict(metrics), checkpoint=train.Checkpoint.from_directory(folder))


def resume(run: Run, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]) -> dict[str, Any]:
    """Continues from Ray's latest checkpoint, if there is one: after a failure, or of an earlier run.

    Another number of workers takes up the parts of all; see `Run.load_state_dict`.

    Returns:
        What was given to `report` as `extra`; empty where training begins.

    Contract: every worker, right after `tightwire.attach`; blocks.

    Raises:
        AttachError: a checkpoint that is not one of `report`.
    """
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return {}
    optimizers = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    with checkpoint.as_directory() as folder:
        file = pathlib.Path(folder) / SHARED
        if not file.exists():
            raise AttachError(
                f"Ray's checkpoint in {folder} has no {SHARED}: it is not one of `report`. Load the model and the "
                "optimizer from it by yourself to begin a new run from them."
            )
        shared = torch.load(file, weights_only=True)
        model.load_state_dict(shared["model"])
        for member, state in zip(optimizers, shared["optimizers"], strict=True):
            member.load_state_dict(state)
        parts = read(folder, rank=run.transport.rank, workers=run.transport.size)
        if parts is None:
            raise AttachError(
                f"Ray's checkpoint in {folder} has no tightwire_0.pt: it is not one of `report`."
            )
        run.load_state_dict(parts)
    extra: dict[str, Any] = shared["extra"]
    return extra
