"""MATCHA: a graph cut into matchings, each activated at random, those that connect the graph more often.

Wang et al. 2019, arXiv:1905.09435; both problems are those of the authors' code (github.com/JYWa/MATCHA), which mixes
parameters after a step, W(x − ηg): that is `local:1/gossip:matcha`. Under `bsp` it is `d-psgd`, Wx − ηg.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Matching = tuple[tuple[int, int], ...]

_STEPS = 400


@dataclass(frozen=True, kw_only=True)
class Activation:
    """The solution of MATCHA's two problems for a graph.

    Attributes:
        matchings: its edges, in sets that do not touch: one set takes as long as one transfer.
        probabilities: of each being active in a round; they maximise λ₂ of the expected Laplacian (problem 4).
        alpha: weight of an active edge; it minimises ρ = ‖E[WᵀW] − 11ᵀ/n‖ (problem 7).
        rho: that norm: the squared distance to the mean shrinks by it per round, in expectation.
    """

    matchings: tuple[Matching, ...]
    probabilities: tuple[float, ...]
    alpha: float
    rho: float

    def draw(self, generator: random.Random) -> list[tuple[int, int]]:
        """Returns the edges of one round; where none came out, those of the likeliest matching.

        The paper lets such a round pass without exchange; here every round says something.
        """
        active = [generator.random() < p for p in self.probabilities]
        if not any(active):
            active[max(range(len(active)), key=self.probabilities.__getitem__)] = True
        return [edge for matching, on in zip(self.matchings, active, strict=True) if on for edge in matching]


def activation(num_ranks: int, edges: Sequence[tuple[int, int]], budget: float) -> Activation:
    """Solves for the activation of a connected graph's matchings.

    Args:
        num_ranks: N.
        edges: of the graph, each once.
        budget: the share of the matchings that a round activates on average, in (0, 1].
    """
    matchings = matchings_of(edges)
    laplacians = [_laplacian(num_ranks, matching) for matching in matchings]
    probabilities = _best_probabilities(laplacians, budget)
    alpha, rho = _best_alpha(laplacians, probabilities)
    return Activation(
        matchings=tuple(matchings), probabilities=tuple(map(float, probabilities)), alpha=alpha, rho=rho
    )


def first_matching(edges: Sequence[tuple[int, int]]) -> Matching:
    """Returns the edges that touch none before them.

    >>> first_matching([(0, 1), (1, 2), (2, 3)])
    ((0, 1), (2, 3))
    """
    met: set[int] = set()
    kept = []
    for a, b in edges:
        if a not in met and b not in met:
            met |= {a, b}
            kept.append((a, b))
    return tuple(kept)


def matchings_of(edges: Sequence[tuple[int, int]]) -> list[Matching]:
    """Colours edges so that those of one colour do not touch.

    >>> matchings_of([(0, 1), (1, 2), (2, 3), (3, 0)])
    [((0, 1), (2, 3)), ((1, 2), (3, 0))]
    """
    colours: list[list[tuple[int, int]]] = []
    for a, b in edges:
        free = (c for c in colours if all(a not in edge and b not in edge for edge in c))
        colour = next(free, None)
        if colour is None:
            colours.append([(a, b)])
        else:
            colour.append((a, b))
    return [tuple(colour) for colour in colours]


def _laplacian(n: int, matching: Matching) -> NDArray[np.float64]:
    import numpy as np

    laplacian = np.zeros((n, n))
    for a, b in matching:
        laplacian[a, a] += 1
        laplacian[b, b] += 1
        laplacian[a, b] -= 1
        laplacian[b, a] -= 1
    return laplacian


def _best_probabilities(laplacians: Sequence[NDArray[np.float64]], budget: float) -> NDArray[np.float64]:
    """Maximises λ₂(Σ pⱼLⱼ), which is concave, by projected supergradients; vᵀLⱼv is one of them."""
    import numpy as np

    total = budget * len(laplacians)
    p = best = np.full(len(laplacians), budget)
    best_value = -1.0
    for step in range(_STEPS):
        values, vectors = np.linalg.eigh(sum(pj * lj for pj, lj in zip(p, laplacians, strict=True)))
        if values[1] > best_value:
            best, best_value = p, float(values[1])
        slope = np.array([vectors[:, 1] @ lj @ vectors[:, 1] for lj in laplacians])
        p = _project(p + 0.3 / np.sqrt(1 + step) * slope, total)
    return best


def _project(p: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """Returns the nearest point with 0 ≤ p ≤ 1 that adds up to `total`."""
    import numpy as np

    low, high = float(p.min()) - 1, float(p.max())
    for _ in range(60):
        middle = (low + high) / 2
        if np.clip(p - middle, 0, 1).sum() > total:
            low = middle
        else:
            high = middle
    return np.clip(p - high, 0, 1)


def _best_alpha(
    laplacians: Sequence[NDArray[np.float64]], probabilities: NDArray[np.float64]
) -> tuple[float, float]:
    """Minimises ρ(α), which is convex, by golden section.

    E[WᵀW] = I − 2αL̄ + α²(L̄² + 2L̃) with L̄ = Σ pⱼLⱼ and L̃ = Σ pⱼ(1 − pⱼ)Lⱼ, for Lⱼ² = 2Lⱼ.
    """
    import numpy as np

    n = len(laplacians[0])
    mean = sum(p * lj for p, lj in zip(probabilities, laplacians, strict=True))
    spread = sum(p * (1 - p) * lj for p, lj in zip(probabilities, laplacians, strict=True))

    def rho(alpha: float) -> float:
        expected = np.eye(n) - 2 * alpha * mean + alpha**2 * (mean @ mean + 2 * spread) - 1 / n
        return float(np.abs(np.linalg.eigvalsh(expected)).max())

    golden = (5**0.5 - 1) / 2
    low, high = 0.0, 1.0
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if rho(left) < rho(right):
            high = right
        else:
            low = left
    alpha = (low + high) / 2
    return alpha, rho(alpha)
