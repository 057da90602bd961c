"""Loops that code the exponents of floats by how often they are, and leave the other bits as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels.cpu._bits import LOOP, load_word, store_word
from tightwire.kernels.cpu._prefix_code import (
    LONGEST,
    fill_table,
    histogram,
    read_streams,
    word_lengths,
    words_of,
    write_stream,
)
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

U8, U32, U64 = np.uint8, np.uint32, np.uint64


@njit(**LOOP)
def take_symbols(bits: Any, symbols: Any) -> Any:
    """Writes the eight bits below every sign; returns how many elements are zero, and the bits that any has."""
    kind = bits.dtype.type
    shift = kind(8 * bits.itemsize - 9)
    zeros: Any = 0
    seen = kind(0)
    for i in range(bits.size):
        symbols[i] = U8(bits[i] >> shift)
        zeros += bits[i] == kind(0)
        seen |= bits[i]
    return zeros, seen


@njit(**LOOP)
def take_plane(bits: Any, place: Any, plane: Any) -> None:
    """Writes one byte per element of what is not its symbol; the last plane holds the sign and seven bits."""
    kind = bits.dtype.type
    shift = kind(8 * place)
    if place < bits.itemsize - 2:
        for i in range(bits.size):
            plane[i] = U8(bits[i] >> shift)
    else:
        above = kind(8 * place + 8)
        for i in range(bits.size):
            low, high = U8(bits[i] >> shift), U8(bits[i] >> above)
            plane[i] = U8(low & U8(0x7F)) | U8(high & U8(0x80))


@njit(**LOOP)
def add_plane(plane: Any, place: Any, bits: Any) -> None:
    """Sets the bits of one plane."""
    kind = bits.dtype.type
    shift = kind(8 * place)
    if place < bits.itemsize - 2:
        for i in range(bits.size):
            bits[i] |= kind(kind(plane[i]) << shift)
    else:
        above = kind(8 * place + 8)
        for i in range(bits.size):
            value = kind(plane[i])
            bits[i] |= kind(kind(value & kind(0x7F)) << shift) | kind(kind(value & kind(0x80)) << above)


@njit(**LOOP)
def encode_entropy(bits: Any, message: Any) -> Any:
    """Writes the message of some floats; returns its length.

    Args:
        bits: unsigned bits of the floats.
        message: uint8, of at least `entropy_bound_bytes`.
    """
    symbols, counts = np.empty(ENTROPY_BLOCK, np.uint8), np.empty(256, np.int64)
    lengths, words = np.empty(256, np.int64), np.empty(256, np.int64)
    kept = np.empty(ENTROPY_BLOCK, bits.dtype)
    place = 0
    for first in range(0, bits.size, ENTROPY_BLOCK):
        here = bits[first : first + ENTROPY_BLOCK]
        zeros, seen = take_symbols(here, symbols)
        start = place + ENTROPY_HEADER_BYTES
        if zeros == here.size:
            write_header(message, place, ENTROPY_ZERO, 0, 0, 0)
            place = start
            continue
        kind, coded = ENTROPY_CODED, here
        bitmap_bytes = 0
        if 4 * zeros * (bits.itemsize - 1) >= here.size:
            kind, bitmap_bytes = ENTROPY_SPARSE, (here.size + 7) // 8
            coded = kept[: here.size - zeros]
            drop_zeros(here, coded, np.empty(0, np.uint8))
            take_symbols(coded, symbols)
        histogram(symbols[: coded.size], counts)
        word_lengths(counts, lengths)
        planes = planes_of(seen, bits.itemsize)
        num_symbols, size = coded_size(counts, lengths, planes, bits.itemsize)
        is_code = num_symbols == 1 or words_of(lengths, words)
        if not is_code or size + bitmap_bytes >= here.size * bits.itemsize:
            write_header(message, place, ENTROPY_RAW, 0, 0, 0)
            place = start + here.size * bits.itemsize
            message[start:place] = here.view(np.uint8)
            continue
        write_header(message, place, kind, planes, num_symbols, coded.size)
        place = write_table(counts, lengths, num_symbols, message, start)
        if kind == ENTROPY_SPARSE:
            drop_zeros(here, kept, message[place : place + bitmap_bytes])
            place += bitmap_bytes
        place = write_planes(coded, planes, message, place)
        if num_symbols > 1:
            place = write_streams(symbols[: coded.size], words, lengths, message, place)
    store_word(message, place, U64(0))
    return place + ENTROPY_GUARD_BYTES


@njit(**LOOP)
def coded_size(counts: Any, lengths: Any, planes: Any, itemsize: Any) -> Any:
    """Returns how many symbols occur, and the most bytes of a coded block without header and bitmap."""
    num_symbols, num_coded, num_bits, num_planes = 0, 0, 0, 0
    for symbol in range(256):
        num_symbols += counts[symbol] > 0
        num_coded += counts[symbol]
        num_bits += counts[symbol] * lengths[symbol]
    for plane in range(itemsize - 1):
        num_planes += (planes >> plane) & 1
    table_bytes = num_symbols if num_symbols == 1 else 2 * num_symbols + 4 * ENTROPY_STREAMS
    return num_symbols, table_bytes + num_planes * num_coded + num_bits // 8 + ENTROPY_STREAMS


@njit(**LOOP)
def write_table(counts: Any, lengths: Any, num_symbols: Any, message: Any, place: Any) -> Any:
    """Writes the symbols that occur, then the lengths of their words unless there is one symbol; returns the end."""
    at = place
    for symbol in range(256):
        if counts[symbol]:
            message[at] = U8(symbol)
            if num_symbols > 1:
                message[at + num_symbols] = U8(lengths[symbol])
            at += 1
    return at + num_symbols if num_symbols > 1 else at


@njit(**LOOP)
def write_planes(coded: Any, planes: Any, message: Any, place: Any) -> Any:
    """Writes the planes in which any bit is set; returns the end."""
    for plane in range(coded.itemsize - 1):
        if (planes >> plane) & 1:
            take_plane(coded, plane, message[place : place + coded.size])
            place += coded.size
    return place


@njit(**LOOP)
def write_streams(symbols: Any, words: Any, lengths: Any, message: Any, place: Any) -> Any:
    """Writes the sizes of the streams, then each quarter of the symbols as one of them; returns the end."""
    codes = np.empty(256, np.uint64)
    for symbol in range(256):
        codes[symbol] = U64(words[symbol]) | U64(lengths[symbol] << 32)
    sizes = place
    place += 4 * ENTROPY_STREAMS
    quarter = (symbols.size + ENTROPY_STREAMS - 1) // ENTROPY_STREAMS
    for j in range(ENTROPY_STREAMS):
        begun = place
        begin, end = min(j * quarter, symbols.size), min((j + 1) * quarter, symbols.size)
        place = write_stream(symbols[begin:end], codes, message, place)
        store_word(message, sizes + 4 * j, U32(place - begun))
    return place


@njit(**LOOP)
def write_header(message: Any, place: Any, kind: Any, planes: Any, symbols: Any, count: Any) -> None:
    """Writes what a block begins with."""
    head = U64(kind) | U64(planes) << U64(8) | U64(symbols) << U64(16) | U64(count) << U64(32)
    store_word(message, place, head)


@njit(**LOOP)
def planes_of(seen: Any, itemsize: Any) -> Any:
    """Returns which planes have any bit set, as bits."""
    planes: Any = 0
    sign_and_seven = ((seen >> U64(8 * (itemsize - 2))) & U64(0x7F)) | (
        (seen >> U64(8 * itemsize - 1)) << U64(7)
    )
    for plane in range(itemsize - 2):
        planes |= np.int64(((seen >> U64(8 * plane)) & U64(0xFF)) != U64(0)) << plane
    return planes | (np.int64(sign_and_seven != U64(0)) << (itemsize - 2))


@njit(**LOOP)
def drop_zeros(bits: Any, kept: Any, bitmap: Any) -> None:
    """Writes those elements that are not zero, and where there is room for a bitmap which those are."""
    slot = 0
    if bitmap.size == 0:
        for i in range(bits.size):
            if bits[i]:
                kept[slot] = bits[i]
                slot += 1
        return
    for byte in range(bitmap.size):
        here = bits[8 * byte : 8 * byte + 8]
        marks: Any = 0
        for i in range(here.size):
            marks |= np.int64(here[i] != 0) << i
        bitmap[byte] = U8(marks)


@njit(**LOOP)
def put_zeros(kept: Any, bitmap: Any, bits: Any) -> Any:
    """Is the inverse of `drop_zeros`; returns how many elements the bitmap has, -1 if these are more than were kept."""
    slot: Any = 0
    for i in range(bits.size):
        is_kept = (bitmap[i >> 3] >> U8(i & 7)) & U8(1)
        if is_kept and slot >= kept.size:
            return -1
        bits[i] = kept[slot] if is_kept else bits.dtype.type(0)
        slot += np.int64(is_kept)
    return slot


@njit(**LOOP)
def decode_entropy(message: Any, bits: Any) -> Any:
    """Writes the floats of a message; False if it cannot be one of so many floats."""
    symbols, kept = np.empty(ENTROPY_BLOCK + 8, np.uint8), np.empty(ENTROPY_BLOCK, bits.dtype)
    table, lengths = np.empty(1 << LONGEST, np.uint64), np.empty(256, np.int64)
    words = np.empty(256, np.int64)
    place = 0
    for first in range(0, bits.size, ENTROPY_BLOCK):
        here = bits[first : first + ENTROPY_BLOCK]
        if place + ENTROPY_HEADER_BYTES + ENTROPY_GUARD_BYTES > message.size:
            return False
        kind = message[place]
        if kind == ENTROPY_ZERO:
            here[:] = 0
            place += ENTROPY_HEADER_BYTES
        elif kind == ENTROPY_RAW:
            place += ENTROPY_HEADER_BYTES
            end = place + here.size * bits.itemsize
            if end + ENTROPY_GUARD_BYTES > message.size:
                return False
            here.view(np.uint8)[:] = message[place:end]
            place = end
        elif kind in (ENTROPY_CODED, ENTROPY_SPARSE):
            place = decode_block(message, place, here, (symbols, kept), (table, lengths, words))
            if place < 0:
                return False
        else:
            return False
    return place + ENTROPY_GUARD_BYTES == message.size


@njit(**LOOP)
def decode_block(message: Any, place: Any, here: Any, rooms: Any, tables: Any) -> Any:
    """Writes the floats of a coded block; returns where it ends, or -1 if it cannot be one."""
    (symbols, kept), (table, lengths, words) = rooms, tables
    head = load_word(message, place)
    is_sparse = U8(head) == ENTROPY_SPARSE
    planes, num_symbols = np.int64((head >> U64(8)) & U64(0xFF)), np.int64((head >> U64(16)) & U64(0xFFFF))
    count = np.int64(head >> U64(32))
    bitmap_bytes = (here.size + 7) // 8 if is_sparse else 0
    num_planes: Any = 0
    width = here.itemsize - 1
    for plane in range(8):
        num_planes += (planes >> plane) & 1
    table_bytes = num_symbols if num_symbols == 1 else 2 * num_symbols + 4 * ENTROPY_STREAMS
    place += ENTROPY_HEADER_BYTES
    bound = message.size - ENTROPY_GUARD_BYTES
    if (
        not 1 <= num_symbols <= 256
        or planes >> width
        or place + table_bytes + bitmap_bytes + num_planes * count > bound
    ):
        return -1
    if (count > here.size) if is_sparse else (count != here.size):
        return -1
    lengths[:] = 0
    only = message[place]
    if num_symbols > 1:
        for j in range(num_symbols):
            lengths[message[place + j]] = message[place + num_symbols + j]
        if not words_of(lengths, words):
            return -1
        place += num_symbols
    place += num_symbols
    bitmap = message[place : place + bitmap_bytes]
    raw = place + bitmap_bytes
    place = raw + num_planes * count
    if num_symbols == 1:
        symbols[:count] = only
    else:
        ends = np.empty(5, np.int64)
        ends[0] = 0
        for j in range(ENTROPY_STREAMS):
            ends[j + 1] = ends[j] + np.int64(load_word(message, place + 4 * j) & U64(0xFFFFFFFF))
        place += 4 * ENTROPY_STREAMS
        if place + ends[4] > bound:
            return -1
        fill_table(lengths, words, table)
        if not read_streams(message[place:], ends, table, lengths, symbols, count):
            return -1
        place += ends[4]
    target = kept[:count] if is_sparse else here
    shift = target.dtype.type(8 * width - 1)
    for i in range(count):
        target[i] = target.dtype.type(target.dtype.type(symbols[i]) << shift)
    for plane in range(width):
        if (planes >> plane) & 1:
            add_plane(message[raw : raw + count], plane, target)
            raw += count
    if is_sparse and put_zeros(target, bitmap, here) != count:
        return -1
    return place
