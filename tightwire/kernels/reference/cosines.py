"""Chunks as their strongest cosine waves."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.reference.blocks import block_indices, select_blocks


def cosine_transform(x: Tensor, forward: Tensor, largest: float, limit: float, coefficients: Tensor) -> None:
    """Writes the coefficients of every chunk of float32 `x`, the last one filled up with zeros.

    Row i of `forward`, (chunk, chunk), is what an element at place i adds. Finite coefficients are cut to `limit`; a
    chunk that is finite, and somewhere larger than `largest`, has none.
    """
    chunk = forward.shape[0]
    rows = torch.nn.functional.pad(x, (0, coefficients.numel() - x.numel())).view(-1, chunk)
    total = torch.zeros_like(rows)
    for i in range(chunk):
        total = total + rows[:, i : i + 1] * forward[i]
    most = rows.abs().amax(1, keepdim=True)
    total = torch.where(most.isfinite() & (most > largest), 0.0, total)
    coefficients.copy_(torch.where(total.isfinite(), total.clamp(-limit, limit), total).flatten())


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


def encode_cosines(
    x: Tensor, waves: tuple[Tensor, Tensor], bounds: tuple[float, float], kept: int, message: Tensor
) -> None:
    """Moves the strongest waves of every chunk of float32 `x` to the message.

    Args:
        x: float32.
        waves: `forward` and `backward`, as for the two directions.
        bounds: `largest` and `limit`, as for `cosine_transform`.
        kept: waves per chunk.
        message: as `decode_cosines` reads it.
    """
    forward, backward = waves
    chunk = forward.shape[0]
    coefficients = torch.empty(-(-x.numel() // chunk) * chunk, device=x.device)
    cosine_transform(x, forward, *bounds, coefficients)
    select_blocks(coefficients, message, chunk, (kept, 0))
    decode_cosines(message, x, backward, kept, -1)
