"""Count-sketches on CUDA; `reference` says what the calls do."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._scratch import scratch_tensor
from tightwire.kernels.reference.sketches import LANES
from tightwire.kernels.triton import _parts as parts
from tightwire.kernels.triton import _sketches

# Places of a table, and groups of neighbours, that a program works on.
_PLACES = 32
_GROUPS = parts.TILE // LANES


def add_to_sketch(x: Tensor, table: Tensor, seed: int) -> None:
    """Adds float32 `x` to a table of (rows, 16·width)."""
    rows, width, groups = table.shape[0], table.shape[1] // LANES, -(-x.numel() // LANES)
    drawn = scratch_tensor("places", rows * groups, torch.int32, x.device)
    parts.launch_by_tile(_sketches.draw_places, drawn, groups, *parts.keys(seed), width, ROWS=rows)
    # Of equal places the earlier group stays before the later one.
    found, order = drawn.sort(stable=True)
    starts = torch.searchsorted(found, torch.arange(rows * width + 1, dtype=torch.int32, device=x.device))
    sizes = x.numel(), groups, rows * width, width
    shape = {"ROWS": rows, "LANES": LANES, "PLACES": _PLACES}
    programs = -(-rows * width // _PLACES)
    parts.launch(
        _sketches.add_to_sketch, programs, table, x, order, starts, *sizes, *parts.keys(seed), **shape
    )


def estimate_from_sketch(table: Tensor, out: Tensor, seed: int) -> None:
    """Writes the estimate of every element to float32 `out`."""
    rows, width = table.shape[0], table.shape[1] // LANES
    shape = {"ROWS": rows, "LANES": LANES, "GROUPS": _GROUPS}
    programs = -(-out.numel() // parts.TILE)
    parts.launch(
        _sketches.estimate_from_sketch, programs, out, table, out.numel(), width, *parts.keys(seed), **shape
    )
