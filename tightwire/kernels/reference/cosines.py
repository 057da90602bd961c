"""Chunks as their strongest cosine waves."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._rotations import cosine_network, cosine_scale
from tightwire.kernels.reference._rows import read_as
from tightwire.kernels.reference.blocks import block_indices, select_blocks


def encode_cosines(
    x: Tensor, backward: Tensor, bounds: tuple[float, float], kept: int, message: Tensor
) -> None:
    """Moves the strongest waves of every chunk of float32 `x` to the message.

    Args:
        x: float32.
        backward: (chunk, chunk); row j is the wave of coefficient j.
        bounds: a chunk that is finite, and somewhere larger than the first, sends zeros; what finite coefficients are
            cut to.
        kept: waves per chunk.
        message: as `decode_cosines` reads it.
    """
    (largest, limit), chunk = bounds, backward.shape[0]
    rows = torch.nn.functional.pad(x, (0, -x.numel() % chunk)).view(-1, chunk)
    coefficients = _transformed(rows, chunk)
    most = rows.abs().amax(1, keepdim=True)
    coefficients = torch.where(most.isfinite() & (most > largest), 0.0, coefficients).flatten()
    select_blocks(coefficients, message, chunk, (kept, 0))
    values = read_as(message[2 * rows.shape[0] * kept :], torch.float32)
    limited = torch.where(values.isfinite(), values.clamp(-limit, limit), values)
    message[2 * values.numel() :] = limited.view(torch.uint8)
    decode_cosines(message, x, backward, kept, -1)


def _transformed(rows: Tensor, chunk: int) -> Tensor:
    """Returns the coefficients of every row, rotation by rotation as every device does."""
    network = cosine_network(chunk)
    found = rows * torch.tensor(cosine_scale(chunk), dtype=torch.float32)
    layers = (
        torch.from_numpy(part).to(rows.device) for part in (network.partners, network.own, network.other)
    )
    for partner, own, other in zip(*layers, strict=True):
        rotated = own * found + other * found[:, partner]
        found = torch.where(partner == torch.arange(chunk, device=rows.device), found, rotated)
    return found[:, torch.from_numpy(network.order).to(rows.device)]


def decode_cosines(message: Tensor, out: Tensor, backward: Tensor, kept: int, how: int) -> bool:
    """Writes (`how` = 0), adds (1) or subtracts (-1) the waves of a message of `kept` coefficients per chunk.

    Row j of `backward`, (chunk, chunk), is the wave of coefficient j. False, with nothing done, if an index is wrong.
    """
    chunk = backward.shape[0]
    num_chunks = -(-out.numel() // chunk)
    indices = block_indices(message, num_chunks * chunk, chunk, (kept, 0))
    if indices is None:
        return False
    places = indices.view(num_chunks, kept) % chunk
    values = message[2 * indices.numel() :].clone().view(torch.float32).view(num_chunks, kept)
    total = torch.zeros(num_chunks, chunk, device=out.device)
    for j in range(kept):
        total = total + values[:, j : j + 1] * backward[places[:, j]]
    waves = total.flatten()[: out.numel()]
    if how == 0:
        out.copy_(waves)
    else:
        out.add_(waves, alpha=how)
    return True
