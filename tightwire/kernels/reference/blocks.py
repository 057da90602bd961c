"""The largest magnitudes of every block, by their indices within it."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.reference._rows import magnitude_bits
from tightwire.kernels.reference.sparse import write_at


def select_blocks(x: Tensor, message: Tensor, block: int, kept: tuple[int, int]) -> None:
    """Moves the `kept` largest magnitudes of every block, and of the last, shorter one, to the message.

    The message is uint16 indices within blocks, ascending, and then the values.
    """
    numel = x.numel()
    whole = numel - numel % block
    pieces = []
    for first, size, k in ((0, block, kept[0]), (whole, numel - whole, kept[1])):
        rows = magnitude_bits(x)[first : first + size * (numel // block if size == block else 1)]
        if k and rows.numel():
            found = rows.view(-1, size).sort(dim=1, descending=True, stable=True).indices[:, :k]
            pieces.append((first, size, found.sort(dim=1).values))
    flat = torch.cat([_in_tensor(found, first, size) for first, size, found in pieces])
    inner = torch.cat([found.flatten() for _, _, found in pieces])
    message[: 2 * flat.numel()] = inner.to(torch.int16).view(torch.uint8)
    message[2 * flat.numel() :] = x[flat].view(torch.uint8)
    x[flat] = 0


def _in_tensor(found: Tensor, first: int, size: int) -> Tensor:
    starts = torch.arange(found.shape[0], device=found.device) * size + first
    return (starts[:, None] + found).flatten()


def scatter_blocks(message: Tensor, out: Tensor, block: int, kept: tuple[int, int], add: bool) -> bool:
    """Writes or adds a message of blocks; False, with nothing done, if an index is wrong."""
    indices = block_indices(message, out.numel(), block, kept)
    if indices is None:
        return False
    values = message[2 * indices.numel() :].clone().view(out.dtype)
    return write_at(indices, values, out, add)


def block_indices(message: Tensor, numel: int, block: int, kept: tuple[int, int]) -> Tensor | None:
    """Returns where in the tensor the elements of a message lie, or None if that cannot be."""
    num_blocks = numel // block
    split = num_blocks * kept[0]
    total = split + kept[1]
    inner = message[: 2 * total].clone().view(torch.int16).long() & 0xFFFF
    parts = (inner[:split].view(num_blocks, kept[0]), inner[split:].view(1, kept[1]))
    for rows, size in zip(parts, (block, numel % block), strict=True):
        if rows.numel() and (bool((rows.diff(dim=1) <= 0).any()) or int(rows.max()) >= size):
            return None
    return torch.cat([_in_tensor(parts[0], 0, block), _in_tensor(parts[1], num_blocks * block, 1)])
