"""What integrations share: the plans that hooks take, and a file for each rank's part of a trainer's checkpoint."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch

from tightwire import files
from tightwire.errors import FileError, PlanError
from tightwire.plan import Plan


def named_plan(plan: Plan | str, who: str) -> Plan:
    """Returns the one plan that a hook takes.

    Args:
        plan: or its text.
        who: takes it, for errors.

    Raises:
        PlanError: it cannot work, is still to be found, or is a plan file.
    """
    if isinstance(plan, Plan):
        return plan
    text = plan if isinstance(plan, str) else ""
    if text.partition(":")[0] in ("auto", "race"):
        raise PlanError(
            f"{plan} finds a plan while tightwire.attach trains, and {who} takes one that is known: find it beforehand "
            "(`tightwire race train.py`, or `tightwire plan`), or name one, such as bsp/allreduce/int8+ef."
        )
    if not text or text.endswith((".yaml", ".yml")):
        raise PlanError(
            f"{files.shortened(str(plan))} is not the text of a plan, which is what {who} takes: of a plan file give "
            'tw.PlanFile.read("plan.yaml").parse(); its routes are for tightwire.attach alone.'
        )
    return Plan.parse(plan)


def path_of(folder: str | pathlib.Path, rank: int, run: int = 0) -> pathlib.Path:
    """Returns where a trainer's checkpoint holds a rank's part of its first run, or of a later one."""
    return pathlib.Path(folder) / f"{_prefix(run)}{rank}.pt"


def write(
    part: Mapping[str, Any], folder: str | pathlib.Path, *, rank: int, workers: int, run: int = 0
) -> None:
    """Writes a rank's part, whole or not at all, and removes those of more workers, which are of another checkpoint.

    Contract: every rank; local.

    Raises:
        FileError: it cannot be written there.
    """
    target = path_of(folder, rank, run)
    unfinished = target.with_name(f"{target.name}.part")
    with files.writing(target):
        try:
            torch.save(dict(part), unfinished)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    for old in pathlib.Path(folder).glob(f"{_prefix(run)}*.pt"):
        number = old.stem.removeprefix(_prefix(run))
        if number.isdigit() and int(number) >= workers:
            old.unlink(missing_ok=True)  # whichever rank comes first


def read(folder: str | pathlib.Path, *, rank: int, workers: int, run: int = 0) -> dict[str, Any] | None:
    """Returns what a rank loads from a folder: its own part or, if another number of workers saved, those of all.

    Args:
        folder: with what `write` wrote.
        rank: that loads.
        workers: that load.
        run: of several in one checkpoint, in their order.

    Returns:
        What `Run.load_state_dict` and `DDPHook.load_state_dict` take, without parts that are missing; None if the
        folder has none.

    Raises:
        FileError: a part that is damaged.
    """
    found = next((n for n in (rank, 0) if path_of(folder, n, run).exists()), None)
    if found is None:
        return None
    part = _load(path_of(folder, found, run))
    saved = part.get("run", part)["workers"]
    if saved == workers:
        return {"parts": {found: part}}
    others = [n for n in range(saved) if path_of(folder, n, run).exists()]
    return {"parts": {n: _load(path_of(folder, n, run)) for n in others}}


def _prefix(run: int) -> str:
    return f"tightwire{run + 1}_" if run else "tightwire_"


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        part = torch.load(path, weights_only=True)
        int(part.get("run", part)["workers"])
    except Exception as error:  # whatever torch makes of a file that is cut short, or of another one
        raise FileError(
            f"{path} cannot be read as a rank's part of a checkpoint ({files.told(error)}): its save was cut short, or "
            "something else stands there. Go on from another checkpoint."
        ) from None
    found: dict[str, Any] = part
    return found
