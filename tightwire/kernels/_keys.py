"""Turns a seed into the two 32-bit keys of its counter-based random stream."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def keys_of(seed: int) -> tuple[int, int]:
    """Returns two well mixed 32-bit keys for any integer seed.

    One step of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): seeds 0, 1, 2, … give unrelated streams.
    """
    z = (seed + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    z ^= z >> 31
    return z >> 32, z & 0xFFFFFFFF
