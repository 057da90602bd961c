"""The sparse kernels in plain torch, on any device: the definition of what the others must write, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels.keys import keys_of
from tightwire.kernels.odds import NUM_BINS, ONE, SHIFT, scale_of

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASKS = {2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FFFFFFFFFFFFFFF}
LANES = 16


def _magnitudes(x: Tensor) -> Tensor:
    """Returns the bits of `x` without signs, which order as magnitudes do."""
    return x.view(_INTEGERS[x.element_size()]) & _MASKS[x.element_size()]


def select_above(x: Tensor, message: Tensor, k: int, threshold: float) -> None:
    """Moves the magnitudes of at least `threshold`, or the k largest if those are fewer, to the message.

    The message is an int32 count, k int32 indices, ascending, and k values; unused places are zero.
    """
    low = _magnitudes(torch.tensor([threshold], dtype=torch.float64, device=x.device).to(x.dtype))
    magnitudes = _magnitudes(x)
    order = magnitudes.sort(descending=True, stable=True).indices[:k]
    indices = order[magnitudes[order] >= low.clamp(min=1)].sort().values
    _write_counted(indices, x[indices], message, k)
    x[indices] = 0


def _write_counted(indices: Tensor, values: Tensor, message: Tensor, k: int) -> None:
    count, itemsize = indices.numel(), values.element_size()
    message.zero_()
    message[:4] = torch.tensor([count], dtype=torch.int32, device=message.device).view(torch.uint8)
    message[4 : 4 + 4 * count] = indices.to(torch.int32).view(torch.uint8)
    message[4 + 4 * k :][: count * itemsize] = values.view(torch.uint8)


def put(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds a message of at most k elements; False, with nothing done, if it cannot be valid."""
    count = int(message[:4].clone().view(torch.int32))
    if not 0 <= count <= k:
        return False
    indices = message[4 : 4 + 4 * count].clone().view(torch.int32).long()
    values = message[4 + 4 * k :][: count * out.element_size()].clone().view(out.dtype)
    return _place(indices, values, out, add)


def _place(indices: Tensor, values: Tensor, out: Tensor, add: bool) -> bool:
    count = indices.numel()
    if count and (bool((indices.diff() <= 0).any()) or indices[0] < 0 or indices[-1] >= out.numel()):
        return False
    if not add:
        out.zero_()
    out[indices] = out[indices] + values if add else values
    return True


def select_blocks(x: Tensor, message: Tensor, block: int, kept: tuple[int, int]) -> None:
    """Moves the `kept` largest magnitudes of every block, and of the last, shorter one, to the message.

    The message is uint16 indices within blocks, ascending, and then the values.
    """
    numel = x.numel()
    whole = numel - numel % block
    pieces = []
    for first, size, k in ((0, block, kept[0]), (whole, numel - whole, kept[1])):
        rows = _magnitudes(x)[first : first + size * (numel // block if size == block else 1)]
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


def put_blocks(message: Tensor, out: Tensor, block: int, kept: tuple[int, int], add: bool) -> bool:
    """Writes or adds a message of blocks; False, with nothing done, if an index is wrong."""
    indices = _block_indices(message, out.numel(), block, kept)
    if indices is None:
        return False
    values = message[2 * indices.numel() :].clone().view(out.dtype)
    return _place(indices, values, out, add)


def _block_indices(message: Tensor, numel: int, block: int, kept: tuple[int, int]) -> Tensor | None:
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


def mark(x: Tensor, found: Tensor, k: int, magnitude: float, message: Tensor) -> None:
    """Writes ± a magnitude at the positions found; float32 `x` keeps the rest.

    Args:
        x: float32.
        found: int32 indices, ascending, then as many float32 values; the first `k` of both count.
        k: how many.
        magnitude: that all are sent as.
        message: int32 places, of which unused ones are cleared: an index, and the sign in the highest bit.
    """
    split = found.numel() // 2
    indices = found[:split].clone().view(torch.int32)[:k]
    values = found[split:].clone().view(torch.float32)[:k]
    negative = values.signbit()
    x[indices.long()] = values - _signed(magnitude, negative)
    message.zero_()
    message[: 4 * k] = (indices | (negative.to(torch.int32) << 31)).view(torch.uint8)


def unmark(message: Tensor, count: int, magnitude: float, out: Tensor, add: bool) -> bool:
    """Writes or adds ± a magnitude at `count` marked positions; False, with nothing done, if these cannot be."""
    entries = message[: 4 * count].clone().view(torch.int32)
    return _place((entries & 0x7FFFFFFF).long(), _signed(magnitude, entries < 0), out, add)


def _signed(magnitude: float, negative: Tensor) -> Tensor:
    size = torch.full(negative.shape, magnitude, dtype=torch.float32, device=negative.device)
    return torch.where(negative, -size, size)


def mean_magnitude(values: Tensor) -> float:
    """Returns the mean magnitude of float32 bytes, as a float32; 0 of none, NaN if one is not finite."""
    magnitudes = values.clone().view(torch.float32).abs()
    if not magnitudes.numel():
        return 0.0
    if not magnitudes.isfinite().all():
        return float("nan")
    return float(magnitudes.mean(dtype=torch.float64).float())


def lean(x: Tensor, found: Tensor) -> tuple[int, float]:
    """Finds the largest elements of one sign in float32 `x`, which stays as it is.

    Of both signs the largest are taken, at most as many as there is room for and no zeros; the sign whose largest
    have the larger mean magnitude is chosen, the positive one if they are equal.

    Args:
        x: float32.
        found: room for int32 indices, ascending, then as many float32 values; unused places are undefined.

    Returns:
        How many there are, -1 if `x` is not finite; their mean magnitude, a float32.
    """
    if not x.isfinite().all():
        return -1, 0.0
    room = found.numel() // 8
    sides = []
    for side in (x.clamp(min=0.0), x.clamp(max=0.0)):
        order = side.abs().sort(descending=True, stable=True).indices[:room]
        indices = order[side[order] != 0].sort().values
        mean = x[indices].double().abs().sum() / max(indices.numel(), 1)
        sides.append((indices, float(mean.float())))
    (above, below) = sides
    indices, mean_of = below if below[1] > above[1] else above
    count = indices.numel()
    found[: 4 * count] = indices.to(torch.int32).view(torch.uint8)
    found[4 * room :][: 4 * count] = x[indices].view(torch.uint8)
    return count, mean_of


def places(numel: int, seed: int, out: Tensor) -> None:
    """Writes ascending places below `numel`, one drawn from each of as many stretches as int64 `out` has places."""
    from tightwire.kernels.reference import random_bits

    bounds = torch.arange(out.numel() + 1, device=out.device).mul_(numel)
    bounds.div_(max(out.numel(), 1), rounding_mode="floor")
    drawn = random_bits(0, out.numel(), seed, out.device)
    out.copy_(bounds[:-1] + ((drawn * bounds.diff()) >> 32))


def draw(x: Tensor, message: Tensor, k: int, seed: int) -> None:
    """Moves elements of finite float32 `x`, drawn by their magnitude, to the message; `x` keeps the difference.

    Odds p = min(1, λ|x|), of which λ makes the sum at most k, are summed over the elements; where the sum passes
    a whole number, shifted by a random start, the element is sent as x/p. The message is as that of `select_above`.
    """
    bins = _magnitudes(x) >> SHIFT
    scale = scale_of(torch.bincount(bins, minlength=NUM_BINS).cpu().numpy(), k)
    magnitude = x.abs().double()
    odds = torch.where(magnitude == 0, 0, (magnitude * scale).clamp(max=ONE - 1).long() + 1)
    sums = odds.cumsum(0) + keys_of(seed)[0] % ONE
    indices = ((sums // ONE) > ((sums - odds) // ONE)).nonzero().flatten()
    values = x[indices].double() * (float(ONE) / odds[indices].double())
    limit = torch.finfo(torch.float32).max
    sent = values.clamp(-limit, limit).float()
    _write_counted(indices, sent, message, k)
    x[indices] -= sent


def transform(x: Tensor, forward: Tensor, largest: float, limit: float, coefficients: Tensor) -> None:
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


def untransform(message: Tensor, out: Tensor, backward: Tensor, kept: int, how: int) -> bool:
    """Writes (`how` = 0), adds (1) or subtracts (-1) the waves of a message of `kept` coefficients per chunk.

    Row j of `backward`, (chunk, chunk), is the wave of coefficient j. False, with nothing done, if an index is wrong.
    """
    chunk = backward.shape[0]
    num_chunks = -(-out.numel() // chunk)
    indices = _block_indices(message, num_chunks * chunk, chunk, (kept, 0))
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


def strongest(
    x: Tensor, waves: tuple[Tensor, Tensor], bounds: tuple[float, float], kept: int, message: Tensor
) -> None:
    """Moves the strongest waves of every chunk of float32 `x` to the message.

    Args:
        x: float32.
        waves: `forward` and `backward`, as for the two directions.
        bounds: `largest` and `limit`, as for `transform`.
        kept: waves per chunk.
        message: as `untransform` reads it.
    """
    forward, backward = waves
    chunk = forward.shape[0]
    coefficients = torch.empty(-(-x.numel() // chunk) * chunk, device=x.device)
    transform(x, forward, *bounds, coefficients)
    select_blocks(coefficients, message, chunk, (kept, 0))
    untransform(message, x, backward, kept, -1)


def sketch(x: Tensor, table: Tensor, seed: int) -> None:
    """Adds float32 `x` to a table of (rows, 16·width): groups of 16 neighbours, each element by a sign, at a place."""
    rows, width = table.shape[0], table.shape[1] // LANES
    for row in range(rows):
        spots, turns = _hashes(x.numel(), row, rows, width, seed, x.device)
        padded = torch.nn.functional.pad(x, (0, turns.numel() - x.numel())).view(-1, LANES)
        table[row].view(width, LANES).index_add_(0, spots, padded * turns)


def unsketch(table: Tensor, out: Tensor, seed: int) -> None:
    """Writes the estimate of every element to float32 `out`: the median over the rows of a table."""
    rows, width = table.shape[0], table.shape[1] // LANES
    seen = []
    for row in range(rows):
        spots, turns = _hashes(out.numel(), row, rows, width, seed, out.device)
        seen.append((table[row].view(width, LANES)[spots] * turns).flatten()[: out.numel()])
    out.copy_(torch.stack(seen).median(0).values)


def _hashes(
    numel: int, row: int, rows: int, width: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns the place of every group in a row, and the sign of every element."""
    from tightwire.kernels.reference import random_bits

    num_groups = -(-numel // LANES)
    drawn = random_bits(0, 2 * num_groups * rows, seed, device).view(num_groups, rows, 2)[:, row]
    bits = drawn[:, 1:] >> torch.arange(LANES, device=device)
    return (drawn[:, 0] * width) >> 32, (1 - 2 * (bits & 1)).float()
