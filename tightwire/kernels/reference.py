"""Every kernel in plain torch, on any device: the definition of what the others must write, bit for bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightwire.kernels.grid import Grid
from tightwire.kernels.keys import keys_of

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASKS = {2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FFFFFFFFFFFFFFF}
# As in cpu/bits.py, where the reasons are.
_CEILING = 3.40282e38
_FLOOR = 2.0**-100


def narrow(x: Tensor, message: Tensor, half: torch.dtype) -> None:
    """Writes float32 `x` as `half`, saturating what is finite; `x` keeps the difference."""
    limit = torch.finfo(half).max
    rounded = torch.where(x.isfinite(), x.clamp(-limit, limit), x).to(half)
    message.copy_(rounded.view(torch.uint8))
    x.sub_(rounded)


def widen(message: Tensor, out: Tensor, half: torch.dtype, add: bool) -> None:
    """Writes or adds the `half` values of a message to float32 `out`."""
    _write(_read(message, half), out, add)


def quantise(x: Tensor, message: Tensor, grid: Grid, seed: int) -> None:
    """Writes the `grid` message of float32 `x`; `x` keeps the difference."""
    whole = x.numel() - x.numel() % grid.block
    split = 4 * grid.num_blocks(x.numel())
    steps, codes = [], []
    for first, last in ((0, whole), (whole, x.numel())):
        if first < last:
            blocks = x[first:last].view(-1, min(grid.block, last - first))
            step, code = _quantise_blocks(blocks, grid, seed, first)
            steps.append(step)
            codes.append(_pack(code, grid.bits))
    message[:split] = torch.cat(steps).view(torch.uint8)
    message[split:] = torch.cat(codes)


def _quantise_blocks(x: Tensor, grid: Grid, seed: int, first: int) -> tuple[Tensor, Tensor]:
    largest = x.abs().amax(1, keepdim=True)
    scale = _euclidean_norm(x, largest) if grid.norm == "l2" else largest
    if grid.clip > 0:
        scale = torch.minimum(scale, grid.clip / math.sqrt(x.shape[1]) * _euclidean_norm(x, largest))
    scale = scale.clamp(max=_CEILING)
    sent = largest >= _FLOOR
    zero = torch.zeros_like(scale)
    step = torch.where(sent, scale / grid.levels, zero)
    inverse = torch.where(sent, torch.full_like(scale, grid.levels) / scale, zero)
    if grid.stochastic:
        rounded = (x * inverse + random_unit(first, x.numel(), seed, x.device).view_as(x)).floor()
    else:
        rounded = (x * inverse).round()
    rounded = rounded.clamp(-grid.levels, grid.levels)
    finite = largest.isfinite()
    step = torch.where(finite, step, torch.nan)
    rounded = torch.where(finite, rounded, 0.0)
    x.sub_(rounded * step)
    return step.view(-1), (rounded + grid.levels).to(torch.uint8)


def _euclidean_norm(x: Tensor, largest: Tensor) -> Tensor:
    """Returns the norm of each row, summed by folding halves."""
    width = 1 << max(0, x.shape[1] - 1).bit_length()
    folded = torch.zeros(x.shape[0], width, device=x.device)
    folded[:, : x.shape[1]] = (x * (1 / largest)).square()
    while width > 1:
        width //= 2
        folded = folded[:, :width] + folded[:, width:]
    return (largest.double() * folded.double().sqrt()).float()


def dequantise(message: Tensor, out: Tensor, grid: Grid, add: bool) -> None:
    """Writes or adds a `grid` message to float32 `out`."""
    whole = out.numel() - out.numel() % grid.block
    split = 4 * grid.num_blocks(out.numel())
    steps = _read(message[:split], torch.float32)
    for first, last in ((0, whole), (whole, out.numel())):
        if first < last:
            blocks = out[first:last].view(-1, min(grid.block, last - first))
            num_blocks, width = blocks.shape
            begin = split + first * grid.bits // 8
            packed = message[begin : begin + num_blocks * -(-width * grid.bits // 8)].view(num_blocks, -1)
            step = steps[first // grid.block :][:num_blocks, None]
            _write((_unpack(packed, grid.bits)[:, :width].float() - grid.levels) * step, blocks, add)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Packs each row of codes; element i goes to byte i % width, plane i // width."""
    per_byte = 8 // bits
    width = -(-codes.shape[1] // per_byte)
    planes = codes.new_zeros(codes.shape[0], per_byte * width)
    planes[:, : codes.shape[1]] = codes
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)[:, None]
    return (planes.view(-1, per_byte, width) << shifts).sum(1, dtype=torch.uint8).view(-1)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)[:, None]
    return ((packed[:, None, :] >> shifts) & ((1 << bits) - 1)).reshape(packed.shape[0], -1)


def select(x: Tensor, message: Tensor, k: int) -> None:
    """Moves the k elements of largest magnitude, of any float dtype, from `x` to the message."""
    bits = x.view(_INTEGERS[x.element_size()]) & _MASKS[x.element_size()]
    order = bits.sort(descending=True, stable=True).indices
    indices = order[:k].sort().values
    message[: 4 * k] = indices.to(torch.int32).view(torch.uint8)
    message[4 * k :] = x[indices].view(torch.uint8)
    x[indices] = 0


def scatter(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds the k values of a message to `out`; False, with nothing done, if an index is wrong."""
    indices = _read(message[: 4 * k], torch.int32).long()
    ascending = bool((indices.diff(prepend=indices.new_tensor([-1])) > 0).all())
    if not ascending or (k > 0 and int(indices[-1]) >= out.numel()):
        return False
    values = _read(message[4 * k :], out.dtype)
    if not add:
        out.zero_()
    out[indices] = out[indices] + values if add else values
    return True


def random_unit(first: int, numel: int, seed: int, device: torch.device) -> Tensor:
    """Returns float32 in [0, 1) for the elements first … first + numel − 1 of the message with this seed."""
    key, second_key = keys_of(seed)
    mask = 0xFFFFFFFF
    h = torch.arange(first, first + numel, device=device) ^ key
    h = h ^ (h >> 16)
    h = ((h * 0x7FEB352D) & mask) ^ second_key
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & mask
    h = h ^ (h >> 16)
    return (h >> 8).to(torch.float32) * 2.0**-24


def _read(message: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a copy of part of a message as `dtype`; a view would need it aligned."""
    return message.clone().view(dtype)


def _write(values: Tensor, out: Tensor, add: bool) -> None:
    if add:
        out.add_(values)
    else:
        out.copy_(values)
