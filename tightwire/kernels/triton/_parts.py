"""What the kernels are made of: rows of blocks, bytes at any offset, bits of floats, randomness by position.

Sums of floats go by folding halves, products are never fused with additions, divisions are rounded to nearest:
what makes a message the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tightwire.kernels._keys import keys_of

MAGNITUDE = tl.constexpr(0x7FFFFFFF)
INFINITY = tl.constexpr(0x7F800000)
NAN = tl.constexpr(0x7FC00000)
# As in cpu/bits.py, where the reasons are.
CEILING = tl.constexpr(3.40282e38)
FLOOR = tl.constexpr(2.0**-100)
ROUNDER = tl.constexpr(12582912.0)

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASKS = {2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FFFFFFFFFFFFFFF}

# Elements that a program works on.
TILE = 2048
# Blocks beyond this do not fit the registers of one program; they are left to plain torch.
LOG_LARGEST_BLOCK = tl.constexpr(14)
LARGEST_BLOCK = 1 << 14


def run_on_device(
    kernel: Any, num_programs: int, args: Sequence[Any], constants: Mapping[str, Any], warps: int
) -> None:
    """Runs programs on the device of the first argument, in the current stream."""
    with torch.accelerator.device_index(args[0].device.index):
        kernel[(num_programs,)](*args, **constants, num_warps=warps, enable_fp_fusion=False)


Runner = Callable[[Any, int, Sequence[Any], Mapping[str, Any], int], None]
_runners: list[Runner] = [run_on_device]


@contextmanager
def running_by(runner: Runner) -> Iterator[None]:
    """Lets another function have what would be run on a device: one that only compiles it."""
    _runners.append(runner)
    try:
        yield
    finally:
        _runners.remove(runner)


def launch(kernel: Any, num_programs: int, x: Tensor, *args: Any, tile: int = TILE, **constants: Any) -> None:
    """Runs programs of a kernel on the device of `x`, its first argument, with as many warps as a tile keeps busy."""
    if num_programs:
        warps = min(max(triton.next_power_of_2(tile) // 512, 4), 16)
        _runners[-1](kernel, num_programs, (x, *args), constants, warps)


def rows(numel: int, block: int, most: int = TILE) -> tuple[int, dict[str, int]]:
    """Returns how many programs blocks take, and the shape of what each works on: so many elements, or one block."""
    width = triton.next_power_of_2(block)
    per_program = max(most // width, 1)
    return -(-numel // (block * per_program)), {
        "BLOCK": block,
        "ROWS": per_program,
        "WIDTH": width,
        "tile": per_program * width,
    }


def launch_by_tile(kernel: Any, x: Tensor, *args: Any, numel: int | None = None, **constants: Any) -> None:
    """Runs a program for every tile of `x`, or of that many elements."""
    num_tiles = -(-(x.numel() if numel is None else numel) // TILE)
    launch(kernel, num_tiles, x, *args, **constants, TILE=TILE)


def bit_rows(numel: int, block: int, most: int = TILE) -> tuple[int, dict[str, int]]:
    """Returns what `rows` does, and how many bytes hold a bit for each element of a block."""
    programs, shape = rows(numel, block, most)
    return programs, shape | {"BYTES": triton.next_power_of_2(block // 8)}


def as_integers(x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Returns `x` as integers, and what kernels need to know of them."""
    itemsize = x.element_size()
    wide = tl.int64 if itemsize == 8 else tl.int32
    return x.view(_INTEGERS[itemsize]), {"MASK": _MASKS[itemsize], "WIDE": wide}


def keys(seed: int) -> tuple[int, int]:
    """Returns the keys of a seed as int32, for a kernel's arguments must not change their type with their value."""
    first, second = ((key ^ 1 << 31) - (1 << 31) for key in keys_of(seed))
    return first, second


@triton.jit
def rows_of(numel: tl.tensor, BLOCK: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    """Returns the blocks of this program, and how many elements each has; 0 behind the last."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, tl.minimum(tl.maximum(numel - row * BLOCK, 0), BLOCK)


@triton.jit
def load_rows(
    x: tl.tensor, row: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr, WIDTH: tl.constexpr
) -> tl.tensor:
    """Returns blocks as (ROWS, WIDTH), filled up with zeros."""
    i = tl.arange(0, WIDTH)[None, :]
    return tl.load(x + row[:, None] * BLOCK + i, mask=i < size[:, None], other=0.0)


@triton.jit
def planes_of(size: tl.tensor, BITS: tl.constexpr, BYTES: tl.constexpr) -> tl.tensor:
    """Returns the place in its block of each code of each byte, (ROWS, 8/BITS, BYTES), and whether there is one."""
    plane = tl.arange(0, 8 // BITS)[None, :, None]
    byte = tl.arange(0, BYTES)[None, None, :]
    width = ((size * BITS + 7) // 8)[:, None, None]
    place = plane * width + byte
    return place, (byte < width) & (place < size[:, None, None])


@triton.jit
def put_codes(
    packed: tl.tensor,
    row: tl.tensor,
    size: tl.tensor,
    codes: tl.tensor,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
) -> None:
    """Writes codes of shape (ROWS, 8/BITS, BYTES), zero where there is no element, to the bytes of their blocks."""
    shift = tl.arange(0, 8 // BITS)[None, :, None] * BITS
    byte = tl.arange(0, BYTES)[None, :]
    width = ((size * BITS + 7) // 8)[:, None]
    start = (row * (BLOCK * BITS // 8))[:, None]
    tl.store(packed + start + byte, tl.sum(codes << shift, axis=1).to(tl.uint8), mask=byte < width)


@triton.jit
def get_codes(
    packed: tl.tensor,
    row: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
) -> tl.tensor:
    """Returns the codes of blocks as int32, (ROWS, 8/BITS, BYTES)."""
    shift = tl.arange(0, 8 // BITS)[None, :, None] * BITS
    byte = tl.arange(0, BYTES)[None, None, :]
    width = ((size * BITS + 7) // 8)[:, None, None]
    start = (row * (BLOCK * BITS // 8))[:, None, None]
    return (tl.load(packed + start + byte, mask=byte < width, other=0).to(tl.int32) >> shift) & (
        (1 << BITS) - 1
    )


@triton.jit
def put_words(
    memory: tl.tensor, index: tl.tensor, words: tl.tensor, mask: tl.tensor, BYTES: tl.constexpr
) -> None:
    """Writes integers of so many bytes, one by one, for messages begin at any address."""
    for byte in tl.static_range(BYTES):
        tl.store(memory + index * BYTES + byte, (words >> (8 * byte)).to(tl.uint8), mask=mask)


@triton.jit
def get_words(
    memory: tl.tensor, index: tl.tensor, mask: tl.tensor, BYTES: tl.constexpr, WIDE: tl.constexpr
) -> tl.tensor:
    """Returns integers of so many bytes as `WIDE`; 0 where the mask has nothing."""
    words = tl.load(memory + index * BYTES, mask=mask, other=0).to(WIDE)
    for byte in tl.static_range(1, BYTES):
        more = tl.load(memory + index * BYTES + byte, mask=mask, other=0).to(WIDE)
        words = words | (more << (8 * byte))
    return words


@triton.jit
def get_floats(memory: tl.tensor, index: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Returns float32 that begin at any address."""
    return get_words(memory, index, mask, 4, tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def write(out: tl.tensor, value: tl.tensor, mask: tl.tensor, ADD: tl.constexpr) -> None:
    """Writes or adds float32."""
    if ADD:
        value = tl.load(out, mask=mask, other=0.0) + value
    tl.store(out, value, mask=mask)


@triton.jit
def magnitude_of(x: tl.tensor) -> tl.tensor:
    """Returns the bits of float32 without signs, as int32, which order as magnitudes do, NaN on top."""
    return x.to(tl.int32, bitcast=True) & MAGNITUDE


@triton.jit
def is_negative(x: tl.tensor) -> tl.tensor:
    """Whether the sign bits of float32 are set."""
    return x.to(tl.int32, bitcast=True) < 0


@triton.jit
def fold(x: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """Returns the sum of each row of (ROWS, WIDTH) by folding halves."""
    for step in tl.static_range(1, LOG_LARGEST_BLOCK + 1):
        if WIDTH >> step > 0:
            x = tl.sum(tl.reshape(x, [x.shape[0], 2, WIDTH >> step]), axis=1)
    return tl.reshape(x, [x.shape[0]])


@triton.jit
def random_bits(index: tl.tensor, key: tl.tensor, second_key: tl.tensor) -> tl.tensor:
    """Returns 32 random bits as a function of an element's index and its message's keys: cpu/bits.py says how."""
    h = index.to(tl.uint32) ^ key.to(tl.uint32, bitcast=True)
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = h ^ second_key.to(tl.uint32, bitcast=True)
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def bfloat_bits(x: tl.tensor) -> tl.tensor:
    """Returns the bits of float32 as bfloat16, in int32: to nearest even, what overflows to infinity."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN whose low half alone says so must stay one.
    rounded = tl.where((bits & MAGNITUDE) > INFINITY, (bits >> 16) | 0x40, rounded)
    return rounded.to(tl.int32)


@triton.jit
def float_of_bfloat(bits: tl.tensor) -> tl.tensor:
    """Returns the float32 of a bfloat16's bits."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
