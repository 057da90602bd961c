"""The seeds of messages: one per round, rank and piece, by which all ranks draw what they must draw alike."""

from __future__ import annotations


def message_seed(seed: int, whose: int, piece: int) -> int:
    """Returns the seed of one message, 32 bits: a SplitMix64 step for each of the three numbers.

    Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators.
    """
    state = 0
    for number in (seed, whose, piece):
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 32
