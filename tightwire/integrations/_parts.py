"""What a rank must save by itself where a trainer saves rank 0's model and optimizer for all."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
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


def path_of(folder: str | pathlib.Path, rank: int) -> pathlib.Path:
    """Returns where a trainer's checkpoint holds a rank's part."""
    return pathlib.Path(folder) / f"tightwire_{rank}.pt"


def write(part: Mapping[str, Any], folder: str | pathlib.Path, *, rank: int, workers: int) -> None:
    """Writes a rank's part, and removes those of more workers in the folder, which are of another checkpoint.

    Contract: every rank; local.
    """
    torch.save(dict(part), path_of(folder, rank))
    for old in pathlib.Path(folder).glob("tightwire_*.pt"):
        number = old.stem.removeprefix("tightwire_")
        if number.isdigit() and int(number) >= workers:
            old.unlink(missing_ok=True)  # whichever rank comes first
