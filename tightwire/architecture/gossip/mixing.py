"""Mixing matrices: how much of whose value a worker takes in one round of gossip."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tightwire.errors import ProgramError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROUNDING = 1e-9


@dataclass(frozen=True)
class Mixing:
    """W: after a round, worker i holds Σⱼ Wᵢⱼ xⱼ. Rows add up to 1, so agreement stays agreement.

    >>> ring = Mixing.uniform(4, [(i, (i + 1) % 4) for i in range(4)], both_ways=True)
    >>> ring.weight(0, 1) == 1 / 3, ring.is_doubly_stochastic, round(ring.spectral_gap, 3)
    (True, True, 0.667)

    Attributes:
        rows: for each worker the others it hears, with their weights, by rank; what is missing to 1 is its own.
    """

    rows: tuple[tuple[tuple[int, float], ...], ...]

    def __post_init__(self) -> None:
        for rank, row in enumerate(self.rows):
            senders = [sender for sender, _ in row]
            if senders != sorted(set(senders) - {rank}) or not set(senders) <= set(range(len(self.rows))):
                raise ProgramError(
                    f"rank {rank} cannot mix with ranks {senders}: others, once each, in order, below "
                    f"{len(self.rows)}."
                )
            if any(weight <= 0 for _, weight in row):
                raise ProgramError(f"rank {rank} mixes with a weight that is not positive: {row}.")

    @classmethod
    def of(cls, num_ranks: int, weights: Mapping[tuple[int, int], float]) -> Mixing:
        """Builds W from its entries (receiver, sender) off the diagonal."""
        rows: list[list[tuple[int, float]]] = [[] for _ in range(num_ranks)]
        for (receiver, sender), weight in sorted(weights.items()):
            rows[receiver].append((sender, weight))
        return cls(tuple(map(tuple, rows)))

    @classmethod
    def uniform(cls, num_ranks: int, edges: Iterable[tuple[int, int]], *, both_ways: bool = False) -> Mixing:
        """Weighs every edge (sender, receiver) by 1/(1 + the larger degree of its ends), as Metropolis and Hastings do.

        On edges both ways W is symmetric; one way it is doubly stochastic where all degrees are equal.
        """
        directed = {(a, b) for a, b in edges if a != b}
        if both_ways:
            directed |= {(b, a) for a, b in directed}
        degree = [0] * num_ranks
        for _, receiver in directed:
            degree[receiver] += 1
        return cls.of(num_ranks, {(b, a): 1 / (1 + max(degree[a], degree[b])) for a, b in directed})

    @property
    def num_ranks(self) -> int:
        """N."""
        return len(self.rows)

    def weight(self, receiver: int, sender: int) -> float:
        """Returns W's entry; the diagonal is what a worker keeps of its own."""
        if receiver == sender:
            return 1.0 - sum(weight for _, weight in self.rows[receiver])
        return self._entries[receiver].get(sender, 0.0)

    @cached_property
    def _entries(self) -> tuple[dict[int, float], ...]:
        return tuple(map(dict, self.rows))

    def edges(self) -> list[tuple[int, int]]:
        """Returns who sends to whom, by sender."""
        return sorted((sender, receiver) for receiver, row in enumerate(self.rows) for sender, _ in row)

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether who hears is heard, with equal weight."""
        entries = {(i, j): weight for i, row in enumerate(self.rows) for j, weight in row}
        return all(abs(entries.get((j, i), 0.0) - weight) < ROUNDING for (i, j), weight in entries.items())

    @cached_property
    def is_doubly_stochastic(self) -> bool:
        """Whether columns add up to 1 as well: then the mean is preserved.

        A worker may keep a negative share of its own, as under MATCHA with many active matchings.
        """
        columns = [self.weight(rank, rank) for rank in range(self.num_ranks)]
        for row in self.rows:
            for sender, weight in row:
                columns[sender] += weight
        return all(abs(column - 1) < ROUNDING for column in columns)

    @cached_property
    def pushed(self) -> Mixing:
        """The column-stochastic matrix of the same edges: equal shares to all that a worker sends to, itself included.

        Its rows need not add up to 1, so what a worker keeps is `push_share`, not `weight(i, i)`.
        """
        return Mixing.of(self.num_ranks, {(b, a): self.push_share(a) for a, b in self.edges()})

    def push_share(self, sender: int) -> float:
        """Returns 1/(1 + out-degree): what a worker keeps of its own, and gives to each, under push-sum."""
        return 1 / (1 + self._out_degrees[sender])

    @cached_property
    def _out_degrees(self) -> tuple[int, ...]:
        degrees = [0] * self.num_ranks
        for sender, _ in self.edges():
            degrees[sender] += 1
        return tuple(degrees)

    def dense(self) -> NDArray[np.float64]:
        """Returns W as an (N, N) array."""
        import numpy as np

        matrix = np.zeros((self.num_ranks, self.num_ranks))
        for rank, row in enumerate(self.rows):
            for sender, weight in row:
                matrix[rank, sender] = weight
            matrix[rank, rank] = self.weight(rank, rank)
        return matrix

    @cached_property
    def lazy(self) -> Mixing:
        """(I + W)/2: half as much of everybody else, so that no eigenvalue of a symmetric W stays below 0.

        >>> Mixing.uniform(2, [(0, 1)], both_ways=True).lazy.rows
        (((1, 0.25),), ((0, 0.25),))
        """
        return Mixing(tuple(tuple((sender, weight / 2) for sender, weight in row) for row in self.rows))

    @cached_property
    def least_eigenvalue(self) -> float:
        """λₙ of a symmetric W."""
        import numpy as np

        return float(np.linalg.eigvalsh(self.dense()).min())

    @cached_property
    def spectral_gap(self) -> float:
        """1 − |λ₂|: the distance to the mean shrinks by |λ₂| per round in the long run."""
        return 1.0 - second_eigenvalue(self.dense())


def second_eigenvalue(matrix: NDArray[np.float64]) -> float:
    """Returns the largest |λ| of W but that of the agreement, 1."""
    import numpy as np

    if len(matrix) == 1:
        return 0.0
    deflated = matrix - np.full_like(matrix, 1 / len(matrix))
    is_symmetric = np.allclose(matrix, matrix.T)
    values = np.linalg.eigvalsh(deflated) if is_symmetric else np.linalg.eigvals(deflated)
    return float(np.abs(values).max())


def is_connected(num_ranks: int, edges: Iterable[tuple[int, int]]) -> bool:
    """Whether everybody's value reaches everybody along directed edges."""
    out: list[set[int]] = [set() for _ in range(num_ranks)]
    into: list[set[int]] = [set() for _ in range(num_ranks)]
    for sender, receiver in edges:
        out[sender].add(receiver)
        into[receiver].add(sender)
    return len(_reached(out)) == len(_reached(into)) == num_ranks


def _reached(neighbours: list[set[int]]) -> set[int]:
    reached, frontier = {0}, {0}
    while frontier:
        frontier = set(itertools.chain.from_iterable(neighbours[rank] for rank in frontier)) - reached
        reached |= frontier
    return reached
