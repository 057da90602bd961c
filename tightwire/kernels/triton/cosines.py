"""Cosine waves on CUDA; `reference` says what the calls do."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._doubts import flag_of
from tightwire.kernels._rotations import cosine_network, cosine_scale
from tightwire.kernels._scratch import per_thread, scratch_tensor
from tightwire.kernels.triton import _cosines
from tightwire.kernels.triton import _parts as parts
from tightwire.kernels.triton.blocks import select_blocks
from tightwire.kernels.triton.sparse import check


def encode_cosines(
    x: Tensor, backward: Tensor, bounds: tuple[float, float], kept: int, message: Tensor
) -> None:
    """Moves the strongest waves of every chunk of float32 `x` to the message."""
    (largest, limit), chunk = bounds, backward.shape[0]
    num_chunks = -(-x.numel() // chunk)
    coefficients = scratch_tensor("coefficients", num_chunks * chunk, torch.float32, x.device)
    programs, shape = parts.rows(x.numel(), chunk)
    tables = _network(chunk, x.device)
    sizes = x.numel(), cosine_scale(chunk), largest, len(tables[0])
    parts.launch(_cosines.transform, programs, x, coefficients, *tables, *sizes, **shape)
    select_blocks(coefficients, message, chunk, (kept, 0))
    values = message[2 * num_chunks * kept :].clone().view(torch.float32)
    values = torch.where(values.isfinite(), values.clamp(-limit, limit), values)
    message[2 * num_chunks * kept :] = values.view(torch.uint8)
    _add_waves(message, x, backward, kept, -1)


@per_thread
def _network(chunk: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns partners, weights and order of the network, on the device."""
    network = cosine_network(chunk)
    partners, order = (torch.from_numpy(part).int().to(device) for part in (network.partners, network.order))
    own, other = (torch.from_numpy(part).to(device) for part in (network.own, network.other))
    return partners, own, other, order


def decode_cosines(message: Tensor, out: Tensor, backward: Tensor, kept: int, how: int) -> bool:
    """Writes, adds or subtracts the waves of a message; nothing, and a flag, if an index is wrong."""
    chunk = backward.shape[0]
    num_chunks = -(-out.numel() // chunk)
    layout = chunk, kept, num_chunks
    check(message, num_chunks * chunk, num_chunks * kept, layout, COUNTED=False, BLOCKED=True)
    _add_waves(message, out, backward, kept, how)
    return True


def _add_waves(message: Tensor, out: Tensor, backward: Tensor, kept: int, how: int) -> None:
    programs, shape = parts.rows(out.numel(), backward.shape[0])
    fault = flag_of(out.device)
    parts.launch(
        _cosines.add_waves, programs, out, message, backward, fault, out.numel(), kept, HOW=how, **shape
    )
