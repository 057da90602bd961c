"""The largest magnitudes of blocks on CUDA; `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.reference import blocks as reference
from tightwire.kernels.triton import _blocks
from tightwire.kernels.triton import _parts as parts
from tightwire.kernels.triton.sparse import place_values


def select_blocks(x: Tensor, message: Tensor, block: int, kept: tuple[int, int]) -> None:
    """Moves the `kept` largest magnitudes of every block, and of the last, shorter one, to the message."""
    if block > parts.LARGEST_BLOCK:
        return reference.select_blocks(x, message, block, kept)
    bits, constants = parts.as_integers(x)
    programs, shape = parts.rows(x.numel(), block)
    itemsize = x.element_size()
    parts.launch(
        _blocks.select_blocks,
        programs,
        bits,
        message,
        x.numel(),
        *kept,
        **shape,
        ITEMSIZE=itemsize,
        **constants,
    )


def scatter_blocks(message: Tensor, out: Tensor, block: int, kept: tuple[int, int], add: bool) -> bool:
    """Writes or adds a message of blocks; nothing, and a flag, if an index is wrong."""
    num_blocks = out.numel() // block
    total = num_blocks * kept[0] + kept[1]
    layout = block, max(kept[0], 1), num_blocks
    return place_values(message, out, total, add, layout, COUNTED=False, BLOCKED=True)
