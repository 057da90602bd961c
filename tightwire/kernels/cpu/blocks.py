"""The largest magnitudes of blocks on processors. `reference` says what the calls do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tightwire.kernels._scratch import scratch_tensor
from tightwire.kernels.cpu import _blocks
from tightwire.kernels.cpu._arrays import eighth_of_octave, magnitude_mask, unsigned_bits
from tightwire.kernels.cpu.sparse import scatter_at


def select_blocks(x: Tensor, message: Tensor, block: int, kept: tuple[int, int]) -> None:
    """Moves the largest magnitudes of every block to the message."""
    mask = magnitude_mask(x)
    step = mask.dtype.type(eighth_of_octave(x.dtype))
    _blocks.select_blocks(unsigned_bits(x), mask, step, block, kept, message.numpy())


def scatter_blocks(message: Tensor, out: Tensor, block: int, kept: tuple[int, int], add: bool) -> bool:
    """Writes or adds a message of blocks; False, with nothing done, if an index is wrong."""
    total = out.numel() // block * kept[0] + kept[1]
    flat = scratch_tensor("flat indices", total, torch.int32).numpy()
    if not _blocks.flat_indices(message.numpy(), out.numel(), block, kept, flat):
        return False
    scatter_at(flat.view(np.uint8), message[2 * total :], out, add)
    return True
