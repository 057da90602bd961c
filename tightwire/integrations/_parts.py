"""What a rank must save by itself where a trainer saves rank 0's model and optimizer for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tightwire.runtime import Run


def part_of(run: Run, model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Returns a rank's part of a checkpoint: the run's, and where replicas differ the model's and the optimizers' too.

    Contract: every rank; blocks where the run must land what is under way.
    """
    part: dict[str, Any] = {"run": run.state_dict()}
    if not (run.plan.sync.is_bulk and run.plan.architecture.agrees):
        part["model"] = model.state_dict()
        part["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    return part


def take_up(part: Mapping[str, Any], run: Run, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Continues from what `part_of` returned on this rank, after the trainer has loaded what it saved.

    Contract: every rank; blocks.
    """
    own = part["run"]["workers"] == run.transport.size
    if own and "model" in part:
        model.load_state_dict(part["model"])
        for optimizer, state in zip(optimizers, part["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    run.load_state_dict(part["run"])
