"""Every kernel in plain torch, on any device: the definition of what the others must write, bit for bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightwire.kernels.grid import ABSTAINED, SPOILED, VOTED, Eight, Grid
from tightwire.kernels.keys import keys_of
from tightwire.kernels.reference_sparse import (  # noqa: F401
    draw,
    lean,
    mark,
    mean_magnitude,
    places,
    put,
    put_blocks,
    select_above,
    select_blocks,
    sketch,
    strongest,
    transform,
    unmark,
    unsketch,
    untransform,
)

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
    parts = [_quantise_blocks(blocks, grid, seed, first) for first, blocks in _blocks(x, grid.block)]
    _join([(step, _pack(codes, grid.bits)) for step, codes in parts], message)


def _blocks(x: Tensor, block: int) -> list[tuple[int, Tensor]]:
    """Returns the whole blocks as rows, and the rest as one row, each with the index of its first element."""
    whole = x.numel() - x.numel() % block
    parts = [(0, x[:whole].view(-1, block)), (whole, x[whole:].view(1, -1))]
    return [(first, rows) for first, rows in parts if rows.numel() > 0]


def _join(parts: list[tuple[Tensor, Tensor]], message: Tensor) -> None:
    """Writes the scales of all parts, and then the codes of all parts."""
    pieces = [piece.reshape(-1).view(torch.uint8) for kind in zip(*parts, strict=True) for piece in kind]
    message.copy_(torch.cat(pieces))


def _quantise_blocks(x: Tensor, grid: Grid, seed: int, first: int) -> tuple[Tensor, Tensor]:
    largest = x.abs().amax(1, keepdim=True)
    scale = _euclidean_norm(x, largest) if grid.norm == "l2" else largest
    if grid.clip > 0:
        scale = torch.minimum(scale, grid.clip / math.sqrt(x.shape[1]) * _euclidean_norm(x, largest))
    scale = scale.clamp(max=_CEILING)
    sent = largest >= _FLOOR
    zero = torch.zeros_like(scale)
    levels = 1 if grid.doubling else grid.levels
    step = torch.where(sent, scale / levels, zero)
    inverse = torch.where(sent, torch.full_like(scale, levels) / scale, zero)
    if grid.doubling:
        rounded = _doubling_codes(x * inverse, grid.levels, random_bits(first, x.numel(), seed, x.device))
    elif grid.stochastic:
        rounded = (x * inverse + random_unit(first, x.numel(), seed, x.device).view_as(x)).floor()
    else:
        rounded = (x * inverse).round()
    rounded = rounded.clamp(-grid.levels, grid.levels)
    finite = largest.isfinite()
    step = torch.where(finite, step, torch.nan)
    rounded = torch.where(finite, rounded, 0.0)
    x.sub_((_doubling_values(rounded, grid.levels) if grid.doubling else rounded) * step)
    return step, (rounded + grid.levels).to(torch.uint8)


def _doubling_codes(y: Tensor, levels: int, random: Tensor) -> Tensor:
    """Rounds |y| ≤ 1 to levels that double, stochastically: 0, and 2**(l − levels) for l from 1 to `levels`."""
    magnitude, random = y.view(torch.int32).long() & _MASKS[4], random.view_as(y)
    above = magnitude - ((127 - levels) << 23)
    below = (y.abs() * 2.0 ** (levels - 1) * 2.0**23).long()
    exact = torch.where(magnitude >= (128 - levels) << 23, above, below)
    level = ((exact + (random >> 9)) >> 23).clamp(max=levels)
    return torch.where(y.signbit(), -level, level).float()


def _doubling_values(codes: Tensor, levels: int) -> Tensor:
    level = codes.abs().int()
    values = torch.where(level > 0, (level + (127 - levels)) << 23, 0).to(torch.int32).view(torch.float32)
    return torch.where(codes < 0, -values, values)


def _euclidean_norm(x: Tensor, largest: Tensor) -> Tensor:
    """Returns the norm of each row, summed by folding halves."""
    folded = _fold((x * (1 / largest)).square())
    return (largest.double() * folded.double().sqrt()).float()


def _fold(x: Tensor) -> Tensor:
    """Returns the sum of each row by folding halves, an order that every device can follow."""
    width = 1 << max(0, x.shape[1] - 1).bit_length()
    folded = torch.nn.functional.pad(x, (0, width - x.shape[1]))
    while width > 1:
        width //= 2
        folded = folded[:, :width] + folded[:, width:]
    return folded


def dequantise(message: Tensor, out: Tensor, grid: Grid, add: bool) -> None:
    """Writes or adds a `grid` message to float32 `out`."""
    for blocks, steps, packed in _split(message, out, grid.block, 4, grid.bits):
        codes = _unpack(packed, grid.bits)[:, : blocks.shape[1]]
        values = codes.float() - grid.levels
        if grid.doubling:
            values = _doubling_values(values, grid.levels)
        _write(values * _read(steps, torch.float32)[:, None], blocks, add)


def _split(
    message: Tensor, out: Tensor, block: int, scale_bytes: int, bits: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns the rows of `out` with the scales, and the packed codes, of each: the inverse of `_join`."""
    split = scale_bytes * -(-out.numel() // block)
    parts = []
    for first, rows in _blocks(out, block):
        num_rows, width = rows.shape
        scales = message[scale_bytes * (first // block) :][: scale_bytes * num_rows]
        codes = message[split + first * bits // 8 :][: num_rows * -(-width * bits // 8)].view(num_rows, -1)
        parts.append((rows, scales, codes))
    return parts


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


def sign(x: Tensor, message: Tensor, block: int, two_sided: bool) -> None:
    """Writes the sign bits of float32 `x`, and per block the mean of |x|, or of each sign; `x` keeps the rest."""
    parts = []
    for _, rows in _blocks(x, block):
        negative = rows.signbit()
        sides = [~negative, negative] if two_sided else [torch.ones_like(negative)]
        means = torch.cat([_mean_magnitude(rows, side) for side in sides], 1)
        rows.sub_(torch.where(negative, -means[:, -1:], means[:, :1]))
        parts.append((means, _pack(negative.to(torch.uint8), 1)))
    _join(parts, message)


def _mean_magnitude(x: Tensor, side: Tensor) -> Tensor:
    magnitude = torch.where(side, x.abs() * (1 / torch.full_like(x[:, :1], x.shape[1])), 0.0)
    more = x.shape[1] / side.sum(1, keepdim=True).clamp(min=1).double()
    mean = (_fold(magnitude).double() * more).float()
    largest = x.abs().amax(1, keepdim=True)
    return torch.where(mean > largest, largest, mean)


def unsign(message: Tensor, out: Tensor, block: int, two_sided: bool, add: bool) -> None:
    """Writes or adds a message of signs to float32 `out`."""
    for rows, scales, packed in _split(message, out, block, 8 if two_sided else 4, 1):
        means = _read(scales, torch.float32).view(rows.shape[0], -1)
        negative = _unpack(packed, 1)[:, : rows.shape[1]].bool()
        _write(torch.where(negative, -means[:, -1:], means[:, :1]), rows, add)


def cast(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes the signs of float32 `x` as votes, random where it is zero; `x` stays as it is."""
    parts = []
    for first, rows in _blocks(x, block):
        largest = rows.abs().amax(1)
        states = torch.where(largest > 0, VOTED, ABSTAINED)
        states = torch.where(largest.isfinite(), states, SPOILED).to(torch.uint8)
        signs = torch.where(rows == 0, _random_sign(first, rows, seed), rows.signbit().long())
        parts.append((states, _pack(signs.to(torch.uint8), 1)))
    _join(parts, message)


def _random_sign(first: int, rows: Tensor, seed: int) -> Tensor:
    return random_bits(first, rows.numel(), seed, rows.device).view(rows.shape) >> 31


def tally(messages: Tensor, outcome: Tensor, numel: int, block: int, seed: int) -> None:
    """Writes the message of the majority of (voters, bytes) messages of `numel` elements, random where they tie."""
    shape = torch.empty(numel, dtype=torch.uint8, device=messages.device)
    ballots = [_split(message, shape, block, 1, 1) for message in messages]
    parts = []
    for place, (first, rows) in enumerate(_blocks(shape, block)):
        states = torch.stack([ballot[place][1] for ballot in ballots])
        signs = torch.stack([_unpack(ballot[place][2], 1)[:, : rows.shape[1]] for ballot in ballots])
        counts = (states == VOTED)[:, :, None]
        lead = (signs.long() * counts).sum(0) * 2 - counts.sum(0)
        majority = torch.where(lead == 0, _random_sign(first, rows, seed), (lead > 0).long())
        parts.append((states.amax(0), _pack(majority.to(torch.uint8), 1)))
    _join(parts, outcome)


def uncast(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds the signs of a message of votes to float32 `out`."""
    sizes = torch.tensor([0.0, 1.0, math.nan], device=out.device)
    for rows, states, packed in _split(message, out, block, 1, 1):
        size = sizes[states.long().clamp(max=SPOILED)][:, None]
        negative = _unpack(packed, 1)[:, : rows.shape[1]].bool()
        _write(torch.where(negative, -size, size), rows, add)


def split_planes(bits: Tensor, message: Tensor) -> None:
    """Writes the bytes of integers by their place in them, the lowest ones of all first."""
    message.view(bits.element_size(), -1).copy_(bits.view(torch.uint8).view(bits.numel(), -1).T)


def join_planes(message: Tensor, bits: Tensor) -> None:
    """Writes the integers whose bytes `split_planes` wrote."""
    bits.view(torch.uint8).view(bits.numel(), -1).copy_(message.view(bits.element_size(), -1).T)


def power(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes float32 `x` rounded to powers of two, stochastically; `x` keeps the difference."""
    parts = []
    for first, rows in _blocks(x, block):
        magnitude = rows.view(torch.int32).long() & _MASKS[4]
        largest = magnitude.amax(1, keepdim=True)
        finite = largest < 0x7F800000
        top = ((largest >> 23) + 1).clamp(max=254)
        lowest = (top - 127).clamp(min=0)
        random = random_bits(first, rows.numel(), seed, x.device).view_as(magnitude) >> 9
        codes = (((magnitude + random) >> 23).clamp(max=254) - lowest).clamp(min=0)
        codes = torch.where(finite, codes, 0)
        signs = torch.where(finite, rows.signbit(), False).to(torch.uint8) << 7
        rows.sub_(torch.where(finite, _powers(codes, lowest, signs), torch.nan))
        parts.append((torch.where(finite, top, 255).to(torch.uint8), codes.to(torch.uint8) | signs))
    _join(parts, message)


def _powers(codes: Tensor, lowest: Tensor, signs: Tensor) -> Tensor:
    values = torch.where(codes > 0, (codes + lowest) << 23, 0).to(torch.int32).view(torch.float32)
    return torch.where(signs > 0, -values, values)


def unpower(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds a message of powers of two to float32 `out`."""
    for rows, scales, codes in _split(message, out, block, 1, 8):
        top = scales.long()[:, None]
        values = _powers(codes.long() & 127, (top - 127).clamp(min=0), codes & 128)
        _write(torch.where(top < 255, values, torch.nan), rows, add)


def eight(x: Tensor, message: Tensor, block: int, form: Eight) -> None:
    """Writes float32 `x` in an 8-bit float format, scaled per block; `x` keeps the difference."""
    parts = []
    for _, rows in _blocks(x, block):
        largest = rows.abs().amax(1, keepdim=True)
        scale = largest.clamp(max=_CEILING)
        zero = torch.zeros_like(scale)
        step = torch.where(largest >= _FLOOR, scale / form.top, zero)
        inverse = torch.where(largest >= _FLOOR, torch.full_like(scale, form.top) / scale, zero)
        finite = largest.isfinite()
        step = torch.where(finite, step, torch.nan)
        scaled = torch.where(finite, rows * inverse, 0.0).clamp(-form.top, form.top)
        rounded = scaled.to(getattr(torch, form.torch_name))
        rows.sub_(rounded.float() * step)
        parts.append((step, rounded.view(torch.uint8)))
    _join(parts, message)


def uneight(message: Tensor, out: Tensor, block: int, form: Eight, add: bool) -> None:
    """Writes or adds a message of 8-bit floats to float32 `out`."""
    for rows, scales, codes in _split(message, out, block, 4, 8):
        values = _read(codes, getattr(torch, form.torch_name)).float()
        _write(values * _read(scales, torch.float32)[:, None], rows, add)


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
    return (random_bits(first, numel, seed, device) >> 8).to(torch.float32) * 2.0**-24


def random_bits(first: int, numel: int, seed: int, device: torch.device) -> Tensor:
    """Returns 32 random bits for each of these elements, as int64."""
    key, second_key = keys_of(seed)
    mask = 0xFFFFFFFF
    h = torch.arange(first, first + numel, device=device) ^ key
    h = h ^ (h >> 16)
    h = ((h * 0x7FEB352D) & mask) ^ second_key
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & mask
    return h ^ (h >> 16)


def _read(message: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a copy of part of a message as `dtype`; a view would need it aligned."""
    return message.clone().view(dtype)


def _write(values: Tensor, out: Tensor, add: bool) -> None:
    if add:
        out.add_(values)
    else:
        out.copy_(values)
