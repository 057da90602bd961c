"""The largest magnitudes on CUDA; `reference` says what the calls do."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.kernels._doubts import flag_of
from tightwire.kernels._scratch import scratch_tensor
from tightwire.kernels.triton import _parts as parts
from tightwire.kernels.triton import _sparse

# Bits of the digits that the k-th largest is found by, the highest first: all but the sign's.
_DIGITS = {2: (11, 4), 4: (11, 11, 9), 8: (11, 11, 11, 11, 11, 8)}
_DIGIT_VALUES = 1 << 11
# Programs that count digits: each adds its histogram to the common one, so more would wait for one another.
_MOST_PROGRAMS = 1024


def select_largest(x: Tensor, message: Tensor, k: int) -> None:
    """Moves the k elements of largest magnitude, of any float dtype, from `x` to the message."""
    state = _kth_largest(x, k)
    _move(x, state, message[: 4 * k], message[4 * k :], None)


def scatter_largest(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds the k values of a message to `out`; nothing, and a flag, if an index is wrong."""
    return place_values(message, out, k, add, (1, 1, 0), COUNTED=False, BLOCKED=False)


def select_above(x: Tensor, message: Tensor, k: int, threshold: float) -> None:
    """Moves the magnitudes of at least `threshold`, or the k largest if those are fewer, to the message."""
    message.zero_()
    low, constants = parts.as_integers(torch.tensor([threshold], dtype=torch.float64).to(x.dtype))
    state = _kth_largest(x, k)
    parts.launch(_sparse.raise_to, 1, state, max(int(low) & constants["MASK"], 1))
    _move(x, state, message[4 : 4 + 4 * k], message[4 + 4 * k :], message[:4])


def scatter_sparse(message: Tensor, out: Tensor, k: int, add: bool) -> bool:
    """Writes or adds a message of at most k elements; nothing, and a flag, if it cannot be valid."""
    return place_values(message, out, k, add, (1, 1, 0), COUNTED=True, BLOCKED=False)


def _kth_largest(x: Tensor, k: int) -> Tensor:
    """Returns the bits of the k-th largest magnitude, and how many that equal it are among the k, as int64."""
    state = scratch_tensor("kth", 2, torch.int64, x.device)
    state[0], state[1] = 0, k
    counts = scratch_tensor("digits", _DIGIT_VALUES, torch.int32, x.device).zero_()
    shift = 8 * x.element_size() - 1
    for digit in _DIGITS[x.element_size()]:
        shift -= digit
        count_digits(x, state, counts, shift, digit)
        parts.launch(_sparse.choose_digit, 1, state, counts, DIGIT=digit)
    return state


def count_digits(x: Tensor, state: Tensor, counts: Tensor, shift: int, digit: int) -> int:
    """Adds to the counts of the next digit; returns how many beyond the last element were counted as digit 0."""
    bits, constants = parts.as_integers(x)
    num_tiles = -(-x.numel() // parts.TILE)
    tiles = -(-num_tiles // _MOST_PROGRAMS)
    programs = -(-num_tiles // tiles)
    sizes = x.numel(), tiles
    parts.launch(
        _sparse.count_digits,
        programs,
        bits,
        state,
        counts,
        *sizes,
        SHIFT=shift,
        DIGIT=digit,
        **constants,
        TILE=parts.TILE,
    )
    return programs * tiles * parts.TILE - x.numel()


def _move(x: Tensor, state: Tensor, indices: Tensor, values: Tensor, counted: Tensor | None) -> None:
    bits, constants = parts.as_integers(x)
    num_tiles = -(-x.numel() // parts.TILE)
    counts, ends = scratch_tensor("tiles", 4 * num_tiles, torch.int64, x.device).view(2, 2, num_tiles)
    parts.launch_by_tile(_sparse.count_tiles, bits, state, counts, x.numel(), **constants)
    torch.cumsum(counts, 1, out=ends)
    head = indices if counted is None else counted
    places = state, counts, ends, indices, values, head, x.numel()
    kind = {"COUNTED": counted is not None, "ITEMSIZE": x.element_size()}
    parts.launch_by_tile(_sparse.move, bits, *places, **kind, **constants)


def place_values(
    message: Tensor, out: Tensor, k: int, add: bool, layout: tuple[int, int, int], **kind: bool
) -> bool:
    """Writes or adds the values of a message, if its indices can be; `layout` and `kind` are as for `_sparse.check`.

    True, for nothing here waits to know: where they cannot be, the thread's flag is set, and nothing is placed.
    """
    bits, constants = parts.as_integers(out)
    fault = check(message, out.numel(), k, layout, **kind)
    if not add:
        out.zero_()
    of = {
        "KIND": str(out.dtype).removeprefix("torch."),
        "ITEMSIZE": out.element_size(),
        "WIDE": constants["WIDE"],
    }
    parts.launch_by_tile(_sparse.place, bits, message, fault, k, *layout, numel=k, **kind, ADD=add, **of)
    return True


def check(message: Tensor, numel: int, k: int, layout: tuple[int, int, int], **kind: bool) -> Tensor:
    """Returns this thread's flag, which is set by then on the device unless the indices of a message can be.

    `layout` and `kind` are as for `_sparse.check`.
    """
    fault = flag_of(message.device)
    # One more, for a message without room for indices still has a count.
    parts.launch_by_tile(_sparse.check, message, fault, numel, k, *layout, numel=k + 1, **kind)
    return fault
