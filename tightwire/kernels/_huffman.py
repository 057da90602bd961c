"""Lengths of the words of a prefix code: one definition for every device, in a subset of Python that numba compiles."""

from __future__ import annotations

from typing import Any

import numpy as np

# Bits of the longest word: a table of all words then stays in the nearest cache.
LONGEST = 11


def word_lengths(counts: Any, lengths: Any) -> None:
    """Writes the length of every symbol's word: Huffman's, of which those beyond `LONGEST` are cut.

    D. A. Huffman, "A method for the construction of minimum-redundancy codes", 1952, with two queues (van Leeuwen,
    1976). Cut words make the code too full; the rarest symbols whose words are shorter give way until it is not.

    Args:
        counts: (256,) int64, how often each symbol is.
        lengths: (256,) int64; 0 for symbols that are not, and for one that is alone.
    """
    lengths[:] = 0
    order = np.argsort(counts, kind="mergesort")
    first = 0
    while first < 256 and counts[order[first]] == 0:
        first += 1
    leaves = 256 - first
    if leaves < 2:
        return
    # Nodes: the leaves by their counts, then the inner ones in the order in which they are made.
    weights, parents = np.zeros(2 * leaves - 1, np.int64), np.zeros(2 * leaves - 1, np.int64)
    for leaf in range(leaves):
        weights[leaf] = counts[order[first + leaf]]
    leaf, inner = 0, leaves
    for made in range(leaves, 2 * leaves - 1):
        for _ in range(2):
            if leaf < leaves and (inner == made or weights[leaf] <= weights[inner]):
                taken = leaf
                leaf += 1
            else:
                taken = inner
                inner += 1
            weights[made] += weights[taken]
            parents[taken] = made
    depths = np.zeros(2 * leaves - 1, np.int64)
    for node in range(2 * leaves - 3, -1, -1):
        depths[node] = depths[parents[node]] + 1
    # The share of all words that begin with those of the code, in units of the share of a longest word.
    room = 1 << LONGEST
    used = 0
    for node in range(leaves):
        depths[node] = min(depths[node], LONGEST)
        used += room >> depths[node]
    while used > room:
        node = 0
        while depths[node] == LONGEST:
            node += 1
        depths[node] += 1
        used -= room >> depths[node]
    for node in range(leaves - 1, -1, -1):
        while depths[node] > 1 and used + (room >> depths[node]) <= room:
            used += room >> depths[node]
            depths[node] -= 1
    for node in range(leaves):
        lengths[order[first + node]] = depths[node]


def words_of(lengths: Any, words: Any) -> bool:
    """Writes every symbol's word, of canonical order, its first bit lowest; False if such lengths are no code.

    Args:
        lengths: (256,) int64, of at least two words.
        words: (256,) int64.
    """
    per_length = np.zeros(LONGEST + 2, np.int64)
    used = 0
    for symbol in range(256):
        length = lengths[symbol]
        if length < 0 or length > LONGEST:
            return False
        if length:
            per_length[length + 1] += 1
            used += 1 << (LONGEST - length)
    if used != 1 << LONGEST:
        return False
    following = np.zeros(LONGEST + 2, np.int64)
    for length in range(1, LONGEST + 1):
        following[length] = (following[length - 1] + per_length[length]) << 1
    for symbol in range(256):
        length = lengths[symbol]
        if length:
            word, turned = following[length], 0
            following[length] += 1
            for _ in range(length):
                turned = (turned << 1) | (word & 1)
                word >>= 1
            words[symbol] = turned
    return True
