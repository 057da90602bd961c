"""Loops that write and read words of a prefix code.

Four streams of words are read at once, each from its own part of the message: a processor then looks up one stream's
symbols while it waits for another's. A table of all words of `LONGEST` bits gives up to four symbols per look.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tightwire.kernels import _huffman
from tightwire.kernels.cpu._bits import LOOP, load_word, store_word
from tightwire.kernels.formats import ENTROPY_STREAMS

LONGEST = _huffman.LONGEST
U8, U32, U64 = np.uint8, np.uint32, np.uint64
# A word of 64 bits that begins at any bit of a byte has 57 that count: so many looks between two reads of memory.
LOOKS = 5
# Symbols per look at most.
PER_LOOK = 4

word_lengths: Any = njit(**LOOP)(_huffman.word_lengths)
words_of: Any = njit(**LOOP)(_huffman.words_of)


@njit(**LOOP)
def histogram(symbols: Any, counts: Any) -> None:
    """Counts symbols; in four tables at first, so that equal neighbours need not wait for one another."""
    tables = np.zeros((4, 256), np.int64)
    whole = symbols.size - symbols.size % 4
    for i in range(0, whole, 4):
        tables[0, symbols[i]] += 1
        tables[1, symbols[i + 1]] += 1
        tables[2, symbols[i + 2]] += 1
        tables[3, symbols[i + 3]] += 1
    for i in range(whole, symbols.size):
        tables[0, symbols[i]] += 1
    for symbol in range(256):
        counts[symbol] = tables[0, symbol] + tables[1, symbol] + tables[2, symbol] + tables[3, symbol]


@njit(**LOOP)
def write_stream(symbols: Any, codes: Any, message: Any, place: Any) -> Any:
    """Writes the words of symbols from a place on, and up to 8 bytes more; returns where they end.

    Args:
        symbols: uint8.
        codes: (256,) uint64, words with their lengths above bit 32.
        message: uint8.
        place: of the first byte.
    """
    held, count = U64(0), U64(0)
    whole = symbols.size - symbols.size % 4
    for i in range(0, whole, 4):
        a, b, c, d = codes[symbols[i]], codes[symbols[i + 1]], codes[symbols[i + 2]], codes[symbols[i + 3]]
        mask = U64(0xFFFFFFFF)
        held |= (a & mask) << count
        count += a >> U64(32)
        held |= (b & mask) << count
        count += b >> U64(32)
        held |= (c & mask) << count
        count += c >> U64(32)
        held |= (d & mask) << count
        count += d >> U64(32)
        store_word(message, place, held)
        place += np.int64(count >> U64(3))
        held >>= count & U64(0xF8)
        count &= U64(7)
    for i in range(whole, symbols.size):
        code = codes[symbols[i]]
        held |= (code & U64(0xFFFFFFFF)) << count
        count += code >> U64(32)
    store_word(message, place, held)
    return place + np.int64((count + U64(7)) >> U64(3))


@njit(**LOOP)
def fill_table(lengths: Any, words: Any, table: Any) -> None:
    """Writes for every `LONGEST` bits the symbols whose words they begin with, up to `PER_LOOK`.

    Args:
        lengths: of all words; see `_huffman`.
        words: of all symbols.
        table: (2**LONGEST,) uint64: a byte per symbol, their number from bit 32, the bits of their words from bit 40.
    """
    singles = np.empty(1 << LONGEST, np.int64)
    for symbol in range(256):
        if lengths[symbol]:
            for index in range(words[symbol], 1 << LONGEST, 1 << lengths[symbol]):
                singles[index] = symbol | lengths[symbol] << 8
    for index in range(1 << LONGEST):
        packed, found, used, rest = 0, 0, 0, index
        while found < PER_LOOK:
            length = singles[rest] >> 8
            if used + length > LONGEST:
                break
            packed |= (singles[rest] & 255) << (8 * found)
            found += 1
            used += length
            rest >>= length
        table[index] = U64(packed | found << 32 | used << 40)


@njit(inline="always")
def look(word: Any, table: Any, symbols: Any, done: Any) -> Any:
    """Writes the symbols at the beginning of a word; returns the word without theirs, and how many are done."""
    entry = table[word & U64((1 << LONGEST) - 1)]
    store_word(symbols, done, U32(entry & U64(0xFFFFFFFF)))
    return word >> (entry >> U64(40)), done + np.int64((entry >> U64(32)) & U64(7)), entry >> U64(40)


@njit(**LOOP)
def read_streams(message: Any, ends: Any, table: Any, lengths: Any, symbols: Any, count: Any) -> Any:
    """Reads four streams of words, one behind another.

    Args:
        message: uint8, from the first stream on, at least 8 bytes longer than all of them.
        ends: (5,) int64, where each stream begins, and where the last one ends.
        table: as `fill_table` writes.
        lengths: of all words.
        symbols: uint8, `count` and room for as many as one look writes.
        count: of all symbols; each stream has a quarter, rounded up, the last ones what is left.

    Returns:
        Whether every stream ends where it must.
    """
    quarter = (count + ENTROPY_STREAMS - 1) // ENTROPY_STREAMS
    last = message.size - 8
    bit, done = np.empty(4, np.int64), np.empty(4, np.int64)
    for j in range(4):
        bit[j], done[j] = 8 * ends[j], min(j * quarter, count)
    p0, p1, p2, p3 = done[0], done[1], done[2], done[3]
    b0, b1, b2, b3 = U64(bit[0]), U64(bit[1]), U64(bit[2]), U64(bit[3])
    room = LOOKS * PER_LOOK
    s0, s1, s2, s3 = p1 - room, p2 - room, p3 - room, count - room
    top = U64(last)
    while p0 <= s0 and p1 <= s1 and p2 <= s2 and p3 <= s3:
        w0 = load_word(message, np.int64(min(b0 >> U64(3), top))) >> (b0 & U64(7))
        w1 = load_word(message, np.int64(min(b1 >> U64(3), top))) >> (b1 & U64(7))
        w2 = load_word(message, np.int64(min(b2 >> U64(3), top))) >> (b2 & U64(7))
        w3 = load_word(message, np.int64(min(b3 >> U64(3), top))) >> (b3 & U64(7))
        for _ in range(LOOKS):
            w0, p0, n = look(w0, table, symbols, p0)
            b0 += n
            w1, p1, n = look(w1, table, symbols, p1)
            b1 += n
            w2, p2, n = look(w2, table, symbols, p2)
            b2 += n
            w3, p3, n = look(w3, table, symbols, p3)
            b3 += n
    bit[0], bit[1], bit[2], bit[3] = b0, b1, b2, b3
    done[0], done[1], done[2], done[3] = p0, p1, p2, p3
    for j in range(4):
        place, at = done[j], U64(bit[j])
        end = min((j + 1) * quarter, count)
        while place < end:
            word = load_word(message, np.int64(min(at >> U64(3), top))) >> (at & U64(7))
            symbol = U8(table[word & U64((1 << LONGEST) - 1)] & U64(255))
            symbols[place] = symbol
            at += U64(lengths[symbol])
            place += 1
        if np.int64((at + U64(7)) >> U64(3)) != ends[j + 1]:
            return False
    return True
