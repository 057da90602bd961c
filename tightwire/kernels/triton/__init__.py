"""Kernels for CUDA in Triton: compiled once per machine and cached on disk.

The calls; `reference` says what they do. All but the last lines of a call run on the device, in the current stream;
only what a message's content decides (whether indices are possible, how odds are scaled) waits for the host.

Whatever is not written here is plain torch, on the device all the same: what torch already does in one pass over memory
(planes of bytes), what few plans need (cosines, marks, count-sketches), and what no multiprocessor's registers hold
(blocks beyond 16,384 elements).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tightwire.kernels import reference, reference_sparse, scratch
from tightwire.kernels.grid import Eight, Grid
from tightwire.kernels.keys import keys_of
from tightwire.kernels.odds import NUM_BINS, ONE, SHIFT, scale_of
from tightwire.kernels.triton import floats, picking, signs, sparse, uniform
from tightwire.kernels.triton.parts import MOST, TILE, keys, launch, rows

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASKS = {2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FFFFFFFFFFFFFFF}
# Bits of the digits that the k-th largest is found by, the highest first: all but the sign's.
_DIGITS = {2: (11, 4), 4: (11, 11, 9), 8: (11, 11, 11, 11, 11, 8)}
_MOST_DIGITS = 1 << 11
# Programs that count digits: each adds its histogram to the common one, so more would wait for one another.
_MOST_PROGRAMS = 1024


def __getattr__(name: str) -> Any:
    return getattr(reference, name)


def narrow(x: Tensor, message: Tensor, half: torch.dtype) -> None:
    """Writes float32 `x` as `half`, saturating what is finite; `x` keeps the difference."""
    fits = message.data_ptr() % 2 == 0 and message.storage_offset() % 2 == 0
    room = message if fits else scratch("halves", message.numel(), torch.uint8, x.device)
    halves = room.view(torch.int16)
    _by_tile(floats.narrow, x, halves, x.numel(), BFLOAT=half == torch.bfloat16)
    if not fits:
        message.copy_(room)


def widen(message: Tensor, out: Tensor, half: torch.dtype, add: bool) -> None:
    """Writes or adds the `half` values of a message to float32 `out`."""
    fits = message.data_ptr() % 2 == 0 and message.storage_offset() % 2 == 0
    room = message if fits else scratch("halves", message.numel(), torch.uint8, out.device).copy_(message)
    _by_tile(floats.widen, out, room.view(torch.int16), out.numel(), BFLOAT=half == torch.bfloat16, ADD=add)


def _by_tile(kernel: Any, x: Tensor, *args: Any, numel: int | None = None, **constants: Any) -> None:
    """Runs a program for every tile of `x`, or of that many elements."""
    num_tiles = -(-(x.numel() if numel is None else numel) // TILE)
    launch(kernel, num_tiles, x, *args, **constants, TILE=TILE)


def quantise(x: Tensor, message: Tensor, grid: Grid, seed: int) -> None:
    """Writes the `grid` message of float32 `x`; `x` keeps the difference."""
    if grid.block > MOST:
        return reference.quantise(x, message, grid, seed)
    programs, shape = rows(x.numel(), grid.block)
    last = x.numel() % grid.block or grid.block
    launch(
        uniform.quantise,
        programs,
        x,
        message,
        x.numel(),
        *keys(seed),
        grid.clip / math.sqrt(grid.block),
        grid.clip / math.sqrt(last),
        **shape,
        **_codes(grid),
        L2=grid.norm == "l2",
        CLIP=grid.clip > 0,
        STOCHASTIC=grid.stochastic,
    )


def _codes(grid: Grid) -> dict[str, Any]:
    width = triton.next_power_of_2(grid.block * grid.bits // 8)
    return {"BITS": grid.bits, "BYTES": width, "LEVELS": grid.levels, "DOUBLING": grid.doubling}


def dequantise(message: Tensor, out: Tensor, grid: Grid, add: bool) -> None:
    """Writes or adds a `grid` message to float32 `out`."""
    if grid.block > MOST:
        return reference.dequantise(message, out, grid, add)
    programs, shape = rows(out.numel(), grid.block)
    launch(uniform.dequantise, programs, out, message, out.numel(), **shape, **_codes(grid), ADD=add)


def sign(x: Tensor, message: Tensor, block: int, two_sided: bool) -> None:
    """Writes the sign bits of float32 `x`, and per block the mean of |x|, or of each sign; `x` keeps the rest."""
    if block > MOST:
        return reference.sign(x, message, block, two_sided)
    programs, shape = _bit_rows(x.numel(), block)
    launch(signs.sign, programs, x, message, x.numel(), **shape, TWO_SIDED=two_sided)


def _bit_rows(numel: int, block: int) -> tuple[int, dict[str, int]]:
    programs, shape = rows(numel, block)
    return programs, shape | {"BYTES": triton.next_power_of_2(block // 8)}


def unsign(message: Tensor, out: Tensor, block: int, two_sided: bool, add: bool) -> None:
    """Writes or adds a message of signs to float32 `out`."""
    if block > MOST:
        return reference.unsign(message, out, block, two_sided, add)
    programs, shape = _bit_rows(out.numel(), block)
    launch(signs.unsign, programs, out, message, out.numel(), **shape, TWO_SIDED=two_sided, ADD=add)


def cast(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes the signs of float32 `x` as votes, random where it is zero; `x` stays as it is."""
    if block > MOST:
        return reference.cast(x, message, block, seed)
    programs, shape = _bit_rows(x.numel(), block)
    launch(signs.cast, programs, x, message, x.numel(), *keys(seed), **shape)


def tally(messages: Tensor, outcome: Tensor, numel: int, block: int, seed: int) -> None:
    """Writes the message of the majority of (voters, bytes) messages of `numel` elements, random where they tie."""
    if block > MOST:
        return reference.tally(messages, outcome, numel, block, seed)
    programs, shape = _bit_rows(numel, block)
    sizes = numel, messages.stride(0), messages.shape[0]
    launch(signs.tally, programs, messages, outcome, *sizes, *keys(seed), **shape)


def uncast(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds the signs of a message of votes to float32 `out`."""
    if block > MOST:
        return reference.uncast(message, out, block, add)
    programs, shape = _bit_rows(out.numel(), block)
    launch(signs.uncast, programs, out, message, out.numel(), **shape, ADD=add)


def power(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes float32 `x` rounded to powers of two, stochastically; `x` keeps the difference."""
    if block > MOST:
        return reference.power(x, message, block, seed)
    programs, shape = rows(x.numel(), block)
    launch(floats.power, programs, x, message, x.numel(), *keys(seed), **shape)


def unpower(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds a message of powers of two to float32 `out`."""
    if block > MOST:
        return reference.unpower(message, out, block, add)
    programs, shape = rows(out.numel(), block)
    launch(floats.unpower, programs, out, message, out.numel(), **shape, ADD=add)


def eight(x: Tensor, message: Tensor, block: int, form: Eight) -> None:
    """Writes float32 `x` in an 8-bit float format, scaled per block; `x` keeps the difference."""
    if block > MOST:
        return reference.eight(x, message, block, form)
    programs, shape = rows(x.numel(), block)
    constants = {"MANTISSA": form.mantissa, "BIAS": form.bias}
    launch(floats.eight, programs, x, message, x.numel(), form.top, **shape, **constants)


def uneight(message: Tensor, out: Tensor, block: int, form: Eight, add: bool) -> None:
    """Writes or adds a message of 8-bit floats to float32 `out`."""
    if block > MOST:
        return reference.uneight(message, out, block, form, add)
    programs, shape = rows(out.numel(), block)
    launch(floats.uneight, programs, out, message, _values(form, out.device), out.numel(), **shape, ADD=add)


@functools.cache
def _values(form: Eight, device: torch.device) -> Tensor:
    """Returns the float32 that each byte stands for."""
    return torch.arange(256, dtype=torch.uint8).view(getattr(torch, form.torch_name)).float().to(device)


def _bits(x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Returns `x` as integers, and what kernels need to know of them."""
    itemsize = x.element_size()
    wide = tl.int64 if itemsize == 8 else tl.int32
    return x.view(_INTEGERS[itemsize]), {"MASK": _MASKS[itemsize], "WIDE": wide}


def select(x: Tensor, message: Tensor, k: int) -> None:
    """Moves the k elements of largest magnitude, of any float dtype, from `x` to the message."""
    state = _kth_largest(x, k)
    _move(x, state, message[: 4 * k], message[4 * k :], None)


def select_above(x: Tensor, message: Tensor, k: int, threshold: float) -> None:
    """Moves the magnitudes of at least `threshold`, or the k largest if those are fewer, to the message."""
    message.zero_()
    low, constants = _bits(torch.tensor([threshold], dtype=torch.float64).to(x.dtype))
    state = _kth_largest(x, k)
    launch(picking.raise_to, 1, state, max(int(low) & constants["MASK"], 1))
    _move(x, state, message[4 : 4 + 4 * k], message[4 + 4 * k :], message[:4])


def _kth_largest(x: Tensor, k: int) -> Tensor:
    """Returns the bits of the k-th largest magnitude, and how many that equal it are among the k, as int64."""
    state = scratch("kth", 2, torch.int64, x.device)
    state[0], state[1] = 0, k
    counts = scratch("digits", _MOST_DIGITS, torch.int32, x.device).zero_()
    shift = 8 * x.element_size() - 1
    for digit in _DIGITS[x.element_size()]:
        shift -= digit
        _count_digits(x, state, counts, shift, digit)
        launch(picking.choose_digit, 1, state, counts, DIGIT=digit)
    return state


def _count_digits(x: Tensor, state: Tensor, counts: Tensor, shift: int, digit: int) -> int:
    """Adds to the counts of the next digit; returns how many beyond the last element were counted as digit 0."""
    bits, constants = _bits(x)
    num_tiles = -(-x.numel() // TILE)
    tiles = -(-num_tiles // _MOST_PROGRAMS)
    programs = -(-num_tiles // tiles)
    sizes = x.numel(), tiles
    launch(
        picking.count_digits,
        programs,
        bits,
        state,
        counts,
        *sizes,
        SHIFT=shift,
        DIGIT=digit,
        **constants,
        TILE=TILE,
    )
    return programs * tiles * TILE - x.numel()


def _move(x: Tensor, state: Tensor, indices: Tensor, values: Tensor, counted: Tensor | None) -> None:
    bits, constants = _bits(x)
    num_tiles = -(-x.numel() // TILE)
    counts, ends = scratch("tiles", 4 * num_tiles, torch.int64, x.device).view(2, 2, num_tiles)
    _by_tile(picking.count_tiles, bits, state, counts, x.numel(), **constants)
    torch.cumsum(counts, 1, out=ends)
    head = indices if counted is None else counted
    places = state, counts, ends, indices, values, head, x.numel()
    kind = {"COUNTED": counted is not None, "ITEMSIZE": x.element_size()}
    _by_tile(picking.move, bits, *places, **kind, **constants)


def select_blocks(x: Tensor, message: Tensor, block: int, kept: tuple[int, int]) -> None:
    """Moves the `kept` largest magnitudes of every block, and of the last, shorter one, to the message."""
    if block > MOST:
        return reference_sparse.select_blocks(x, message, block, kept)
    bits, constants = _bits(x)
    programs, shape = rows(x.numel(), block)
    itemsize = x.element_size()
    launch(
        picking.select_blocks,
        programs,
        bits,
        message,
        x.numel(),
        *kept,
        **shape,
        ITEMSIZE=itemsize,
        **constants,
    )


def scatter(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds the k values of a message to `out`; False, with nothing done, if an index is wrong."""
    return _place(message, out, k, add, (1, 1, 0), COUNTED=False, BLOCKED=False)


def put(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds a message of at most k elements; False, with nothing done, if it cannot be valid."""
    return _place(message, out, k, add, (1, 1, 0), COUNTED=True, BLOCKED=False)


def put_blocks(message: Tensor, out: Tensor, block: int, kept: tuple[int, int], add: bool) -> bool:
    """Writes or adds a message of blocks; False, with nothing done, if an index is wrong."""
    num_blocks = out.numel() // block
    total = num_blocks * kept[0] + kept[1]
    layout = block, max(kept[0], 1), num_blocks
    return _place(message, out, total, add, layout, COUNTED=False, BLOCKED=True)


def _place(
    message: Tensor, out: Tensor, k: int, add: bool, layout: tuple[int, int, int], **kind: bool
) -> bool:
    bits, constants = _bits(out)
    fault = scratch("fault", 1, torch.int32, out.device).zero_()
    # One more, for a message without room for indices still has a count.
    _by_tile(sparse.check, message, fault, out.numel(), k, *layout, numel=k + 1, **kind)
    if fault.item():
        return False
    if not add:
        out.zero_()
    of = {
        "KIND": str(out.dtype).removeprefix("torch."),
        "ITEMSIZE": out.element_size(),
        "WIDE": constants["WIDE"],
    }
    _by_tile(sparse.place, bits, message, k, *layout, numel=k, **kind, ADD=add, **of)
    return True


def draw(x: Tensor, message: Tensor, k: int, seed: int) -> None:
    """Moves elements of finite float32 `x`, drawn by their magnitude, to the message; `x` keeps the difference."""
    message.zero_()
    counts = torch.zeros(NUM_BINS, dtype=torch.int32, device=x.device)
    state = scratch("kth", 2, torch.int64, x.device).zero_()
    beyond = _count_digits(x, state, counts, SHIFT, 31 - SHIFT)
    found = counts.cpu().numpy()
    found[0] -= beyond
    scale = torch.tensor([scale_of(found, k)], dtype=torch.float64, device=x.device)
    num_tiles = -(-x.numel() // TILE)
    sums, ends = scratch("tiles", 2 * num_tiles, torch.int64, x.device).view(2, num_tiles)
    _by_tile(sparse.sum_odds, x, scale, sums, x.numel())
    torch.cumsum(sums, 0, out=ends)
    _by_tile(sparse.draw, x, scale, sums, ends, message, x.numel(), keys_of(seed)[0] % ONE, k)


def places(numel: int, seed: int, out: Tensor) -> None:
    """Writes ascending places below `numel`, one drawn from each of as many stretches as int64 `out` has places."""
    _by_tile(sparse.places, out, numel, *keys(seed), out.numel())
