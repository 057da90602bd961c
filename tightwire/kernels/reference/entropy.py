"""Floats without loss, in fewer bits: exponents in words as long as they are rare, the other bits as they are."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from tightwire.kernels._huffman import LONGEST, word_lengths, words_of
from tightwire.kernels.formats import (
    ENTROPY_BLOCK,
    ENTROPY_CODED,
    ENTROPY_GUARD_BYTES,
    ENTROPY_HEADER_BYTES,
    ENTROPY_RAW,
    ENTROPY_SPARSE,
    ENTROPY_STREAMS,
    ENTROPY_ZERO,
)
from tightwire.kernels.reference._rows import integer_bits


def encode_entropy(x: Tensor, message: Tensor) -> int:
    """Writes the floats `x`, of any dtype, and returns the length of the message; `x` stays as it is.

    A symbol is the eight bits below the sign: the exponent of float32 and bfloat16, the exponent and three bits of
    float16, eight of eleven bits of float64's. What is left of each element are whole bytes, of which the last holds
    the sign; the bytes of one place make a plane, and planes without any bit do not travel.

    Blocks of `ENTROPY_BLOCK` elements begin with a uint64: their kind, a bit per plane that travels, the number of
    symbols, and of elements that are coded, from bits 0, 8, 16 and 32 on. A coded block goes on with

    - the symbols that it has, ascending, and unless there is only one the lengths of their words (`_huffman`);
    - where zeros were dropped (kind `ENTROPY_SPARSE`) a bit per element that says which are left;
    - the planes;
    - unless there is one symbol only, the bytes of each of the four streams of words, as uint32, and these: a stream
      has a quarter of the symbols, rounded up, and the last ones what is left.

    A block that this would not shorten is sent as it is. Guard bytes end the message.

    Args:
        x: floats.
        message: of at least `entropy_bound_bytes`.
    """
    bits = integer_bits(x)
    pieces = [
        _encode_block(bits[first : first + ENTROPY_BLOCK]) for first in range(0, x.numel(), ENTROPY_BLOCK)
    ]
    guard = torch.zeros(ENTROPY_GUARD_BYTES, dtype=torch.uint8, device=x.device)
    found = torch.cat([*pieces, guard])
    message[: found.numel()] = found
    return found.numel()


def _encode_block(bits: Tensor) -> Tensor:
    itemsize, numel = bits.element_size(), bits.numel()
    raw = bits.view(torch.uint8)
    zeros = int((bits == 0).sum())
    if zeros == numel:
        return _header(ENTROPY_ZERO, 0, 0, 0, bits)
    kind, coded, bitmap = ENTROPY_CODED, bits, raw[:0]
    if 4 * zeros * (itemsize - 1) >= numel:
        kind, coded = ENTROPY_SPARSE, bits[bits != 0]
        bitmap = _packed(bits != 0)
    symbols = (coded >> (8 * itemsize - 9)) & 0xFF
    planes = [_plane(coded, place) for place in range(itemsize - 1)]
    present = sum(int(plane.any()) << place for place, plane in enumerate(planes))
    counts = torch.bincount(symbols, minlength=256).cpu().numpy()
    lengths, words = np.zeros(256, np.int64), np.zeros(256, np.int64)
    word_lengths(counts, lengths)
    used = np.flatnonzero(counts)
    table = used if used.size == 1 else np.concatenate([used, lengths[used]])
    streams_bytes = 0 if used.size == 1 else 4 * ENTROPY_STREAMS
    raw_planes = torch.cat(
        [planes[place] for place in range(itemsize - 1) if present >> place & 1] or [raw[:0]]
    )
    bound = table.size + streams_bytes + bitmap.numel() + raw_planes.numel()
    bound += int(counts @ lengths) // 8 + ENTROPY_STREAMS
    if (used.size > 1 and not words_of(lengths, words)) or bound >= raw.numel():
        return torch.cat([_header(ENTROPY_RAW, 0, 0, 0, bits), raw])
    head = _header(kind, present, used.size, coded.numel(), bits)
    parts = [head, torch.from_numpy(table.astype(np.uint8)).to(bits.device), bitmap, raw_planes]
    if used.size > 1:
        parts += _streams(symbols, lengths, words)
    return torch.cat(parts)


def _header(kind: int, planes: int, symbols: int, count: int, like: Tensor) -> Tensor:
    word = torch.tensor([kind | planes << 8 | symbols << 16 | count << 32], device=like.device)
    return word.view(torch.uint8)


def _plane(bits: Tensor, place: int) -> Tensor:
    """Returns a byte per element of what is not its symbol; the last plane's are the sign and seven bits."""
    byte = (bits >> 8 * place) & 0xFF
    if place == bits.element_size() - 2:
        byte = (byte & 0x7F) | torch.where(bits < 0, 0x80, 0)
    return byte.to(torch.uint8)


def _packed(bits: Tensor) -> Tensor:
    """Returns booleans as bits, the first one lowest, in whole bytes."""
    rows = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.numel() % 8)).view(-1, 8)
    return (rows << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Tensor:
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> places) & 1).flatten()


def _quarters(count: int) -> list[tuple[int, int]]:
    quarter = -(-count // ENTROPY_STREAMS)
    return [(min(j * quarter, count), min((j + 1) * quarter, count)) for j in range(ENTROPY_STREAMS)]


def _streams(symbols: Tensor, lengths: np.ndarray, words: np.ndarray) -> list[Tensor]:
    """Returns the bytes of all streams' sizes, and the streams."""
    length_of, word_of = (torch.from_numpy(table).to(symbols.device) for table in (lengths, words))
    streams = []
    for begin, end in _quarters(symbols.numel()):
        here = symbols[begin:end].long()
        sizes, codes = length_of[here], word_of[here]
        ends = sizes.cumsum(0)
        bits = torch.zeros(int(sizes.sum()), dtype=torch.bool, device=symbols.device)
        for bit in range(LONGEST):
            has = sizes > bit
            bits[(ends - sizes + bit)[has]] = (codes[has] >> bit & 1).bool()
        streams.append(_packed(bits))
    counts = torch.tensor([s.numel() for s in streams], dtype=torch.int32, device=symbols.device)
    return [counts.view(torch.uint8), *streams]


def decode_entropy(message: Tensor, out: Tensor) -> bool:
    """Writes the floats of a message to `out`; False, `out` being undefined, if it cannot be one of so many."""
    bits, place = integer_bits(out), 0
    try:
        for first in range(0, out.numel(), ENTROPY_BLOCK):
            here = bits[first : first + ENTROPY_BLOCK]
            place += _decode_block(message[place : message.numel() - ENTROPY_GUARD_BYTES], here)
    except _ImpossibleError:
        return False
    return place + ENTROPY_GUARD_BYTES == message.numel()


class _ImpossibleError(Exception):
    """Bytes that no encoder writes."""


def _require(is_possible: bool) -> None:
    if not is_possible:
        raise _ImpossibleError


def _decode_block(message: Tensor, here: Tensor) -> int:
    """Writes the floats of the block that a message begins with; returns its bytes."""
    numel, width = here.numel(), here.element_size() - 1
    _require(message.numel() >= ENTROPY_HEADER_BYTES)
    head = int(message[:ENTROPY_HEADER_BYTES].clone().view(torch.int64))
    kind, planes, num_symbols, count = head & 0xFF, head >> 8 & 0xFF, head >> 16 & 0xFFFF, head >> 32
    body, place = message[ENTROPY_HEADER_BYTES:], 0

    def take(size: int) -> Tensor:
        nonlocal place
        _require(place + size <= body.numel())
        place += size
        return body[place - size : place]

    if kind == ENTROPY_ZERO:
        here.zero_()
    elif kind == ENTROPY_RAW:
        here.view(torch.uint8).copy_(take(numel * here.element_size()))
    else:
        is_sparse = kind == ENTROPY_SPARSE
        _require(is_sparse or kind == ENTROPY_CODED)
        _require(1 <= num_symbols <= 256 and planes >> width == 0)
        _require(0 <= count <= numel if is_sparse else count == numel)
        used = take(num_symbols).tolist()
        lengths, words = np.zeros(256, np.int64), np.zeros(256, np.int64)
        if num_symbols > 1:
            lengths[used] = take(num_symbols).cpu().numpy()
            _require(words_of(lengths, words))
        is_kept = _unpacked(take(-(-numel // 8) if is_sparse else 0))[:numel].bool()
        raw = [(place_of, take(count)) for place_of in range(width) if planes >> place_of & 1]
        symbols = torch.full((count,), used[0], dtype=here.dtype, device=here.device)
        if num_symbols > 1:
            sizes = take(4 * ENTROPY_STREAMS).clone().view(torch.int32).tolist()
            _require(min(sizes) >= 0)
            read = [
                _read_stream(take(size), end - begin, lengths, words)
                for size, (begin, end) in zip(sizes, _quarters(count), strict=True)
            ]
            symbols.copy_(torch.tensor(list(itertools.chain(*read)), dtype=torch.int64))
        coded = symbols << (8 * width - 1)
        for place_of, plane in raw:
            byte = plane.to(here.dtype)
            if place_of == width - 1:
                byte = (byte & 0x7F) | ((byte & 0x80) << 8)
            coded |= byte << (8 * place_of)
        if is_sparse:
            _require(int(is_kept.sum()) == count)
            here.zero_()[is_kept] = coded
        else:
            here.copy_(coded)
    return ENTROPY_HEADER_BYTES + place


def _read_stream(stream: Tensor, count: int, lengths: np.ndarray, words: np.ndarray) -> list[int]:
    """Returns the symbols of a stream, which must end where the last one does."""
    bits = torch.nn.functional.pad(_unpacked(stream).long(), (0, LONGEST)).cpu()
    windows = sum(bits[k : bits.numel() - LONGEST + k + 1] << k for k in range(LONGEST))
    symbol_of = np.zeros(1 << LONGEST, np.int64)
    for symbol in np.flatnonzero(lengths):
        symbol_of[words[symbol] :: 1 << lengths[symbol]] = symbol
    at = symbol_of[windows.numpy()] if isinstance(windows, Tensor) else symbol_of[:0]
    steps = lengths[at].tolist()
    found, place = [], 0
    for _ in range(count):
        _require(place < len(at))
        found.append(int(at[place]))
        place += steps[place]
    _require(-(-place // 8) == stream.numel())
    return found
