"""The discrete cosine transform as a network of plane rotations: one definition for every device.

An orthonormal transform of n elements takes about n/2·log₂ n rotations of two elements each, in layers that touch every
element once at most. Each is two products and their sum, in one order and never fused, so that all devices get the same
bits; and no length grows, so that nothing overflows on the way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CosineNetwork:
    """Rotations in order, and where coefficients are in the end.

    Attributes:
        pairs: (rotations, 2), the places of two elements.
        weights: (rotations, 4); the first element becomes w₀·first + w₁·second, the second one w₂·second + w₃·first.
        partners: (layers, n), whom each place is rotated with; itself where it is not.
        own: (layers, n), the weight of what is at a place.
        other: (layers, n), the weight of what is at its partner's.
        order: (n,), the place of each coefficient, that of the longest wave first.
    """

    pairs: Integers
    weights: Floats
    partners: Integers
    own: Floats
    other: Floats
    order: Integers


@functools.cache
def cosine_network(n: int) -> CosineNetwork:
    """Returns the network of the orthonormal DCT-II of `n` elements, a power of two.

    Plonka and Tasche, "Fast and numerically stable algorithms for discrete cosine transforms", 2005: a DCT-II is
    rotations by 45° and then a DCT-II and a DCT-IV of half the size; a DCT-IV is rotations, two DCT-II of half the
    size, and rotations by 45°.
    """
    builder = _Builder(n)
    order = builder.second(range(n))
    layers = max(builder.depth, default=0)
    partners = np.tile(np.arange(n), (layers, 1))
    own, other = np.ones((layers, n), np.float32), np.zeros((layers, n), np.float32)
    for layer, (p, q), weights in builder.rotations:
        partners[layer, [p, q]] = q, p
        own[layer, [p, q]], other[layer, [p, q]] = weights[::2], weights[1::2]
    return CosineNetwork(
        pairs=np.array([pair for _, pair, _ in builder.rotations], np.int64).reshape(-1, 2),
        weights=np.array([weights for _, _, weights in builder.rotations], np.float32).reshape(-1, 4),
        partners=partners,
        own=own,
        other=other,
        order=np.array(order, np.int64),
    )


def cosine_scale(n: int) -> float:
    """Returns what elements are scaled by beforehand, so that no coefficient is larger than they."""
    return 1 / math.sqrt(2 * n)


class _Builder:
    def __init__(self, n: int) -> None:
        self.depth = [0] * n
        self.rotations: list[tuple[int, tuple[int, int], tuple[float, float, float, float]]] = []

    def second(self, places: Sequence[int]) -> list[int]:
        """Adds a DCT-II of what is at these places; returns where its coefficients are."""
        n = len(places)
        if n == 1:
            return list(places)
        half = n // 2
        for i in range(half):
            self._rotate(places[i], places[n - 1 - i], math.pi / 4)
        even = self.second(places[:half])
        odd = self._fourth([places[n - 1 - i] for i in range(half)])
        return [place for pair in zip(even, odd, strict=True) for place in pair]

    def _fourth(self, places: Sequence[int]) -> list[int]:
        """Adds a DCT-IV likewise."""
        n = len(places)
        if n == 1:
            return list(places)
        half = n // 2
        for i in range(half):
            # The sine transform of the second half is a cosine transform of what changes sign from place to place.
            self._rotate(places[i], places[n - 1 - i], (2 * i + 1) * math.pi / (4 * n), turned=i % 2 == 1)
        cosines = self.second(places[:half])
        sines = self.second([places[n - 1 - i] for i in range(half)])
        for j in range(1, half):
            self._rotate(cosines[j], sines[half - j], math.pi / 4)
        pairs = [(cosines[j], sines[half - j]) for j in range(1, half)]
        return [cosines[0], *(place for pair in pairs for place in pair), sines[0]]

    def _rotate(self, p: int, q: int, angle: float, *, turned: bool = False) -> None:
        """Lets p, q become c·p + s·q and s·p − c·q, the latter's sign turned or not."""
        c, s, sign = math.cos(angle), math.sin(angle), -1.0 if turned else 1.0
        layer = max(self.depth[p], self.depth[q])
        self.depth[p] = self.depth[q] = layer + 1
        self.rotations.append((layer, (p, q), (c, s, -sign * c, sign * s)))
