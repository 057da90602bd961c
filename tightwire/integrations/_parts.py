"""A file for each rank's part of a checkpoint, where a trainer saves rank 0's model and optimizer for all."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch


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


def read(folder: str | pathlib.Path, *, rank: int, workers: int) -> dict[str, Any] | None:
    """Returns what a rank loads from a folder: its own part or, if another number of workers saved, those of all.

    Args:
        folder: with what `write` wrote.
        rank: that loads.
        workers: that load.

    Returns:
        What `Run.load_state_dict` and `DDPHook.load_state_dict` take, without parts that are missing; None if the
        folder has none.
    """
    found = next((n for n in (rank, 0) if path_of(folder, n).exists()), None)
    if found is None:
        return None
    part = torch.load(path_of(folder, found), weights_only=True)
    saved = part.get("run", part)["workers"]
    if saved == workers:
        return {"parts": {found: part}}
    others = [n for n in range(saved) if path_of(folder, n).exists()]
    return {"parts": {n: torch.load(path_of(folder, n), weights_only=True) for n in others}}
