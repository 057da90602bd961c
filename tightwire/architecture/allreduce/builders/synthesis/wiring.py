"""What a synthesis must know of a network: how fast every link is, and by which of them two ranks talk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tightwire.errors import ProgramError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Wiring:
    """Ranks, the links between them, and the routes that the network takes.

    Routes are the network's own: a program chooses who sends to whom, not the way.

    Attributes:
        rates: of every direction of every link, in bytes per second.
        routes: from rank s to rank d, at s·n + d: the directions crossed, as indices into `rates`.

    Raises:
        ProgramError: no square number of routes, a link that carries nothing, or one that does not exist.
    """

    rates: tuple[float, ...]
    routes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        n = self.num_ranks
        if n * n != len(self.routes) or n < 1:
            raise ProgramError(f"a wiring of n ranks has n² routes, and {len(self.routes)} were given.")
        if any(not rate > 0 for rate in self.rates):
            raise ProgramError(f"a link of {min(self.rates)} bytes per second carries nothing; leave it out.")
        crossed = [i for route in self.routes for i in route]
        if crossed and not 0 <= min(crossed) <= max(crossed) < len(self.rates):
            raise ProgramError(f"routes cross links up to {max(crossed)}, and there are {len(self.rates)}.")
        for src, dst in itertools.permutations(range(min(n, 2)), 2):
            if not self.route(src, dst):
                raise ProgramError(f"ranks {src} and {dst} have no route: the network is in pieces.")

    def __hash__(self) -> int:
        known: int = self._hash
        return known

    @cached_property
    def _hash(self) -> int:
        return hash((self.rates, self.routes))  # once: wirings are keys of caches

    @classmethod
    def star(cls, rates: Sequence[float]) -> Wiring:
        """Returns ranks on lines of their own to one switch, each as fast both ways.

        >>> Wiring.star([1.0, 1.0, 0.25]).route(0, 2)
        (0, 5)
        """
        n = len(rates)
        both = tuple(float(rate) for rate in rates for _ in range(2))
        routes = (() if s == d else (2 * s, 2 * d + 1) for s in range(n) for d in range(n))
        return cls(both, tuple(routes))

    @property
    def num_ranks(self) -> int:
        """N."""
        return math.isqrt(len(self.routes))

    def route(self, src: int, dst: int) -> tuple[int, ...]:
        """Returns the directions that a message crosses."""
        return self.routes[src * self.num_ranks + dst]

    @cached_property
    def _crossings(self) -> tuple[Ints, Ints]:
        """Which pair of ranks (as s·n + d) crosses which direction, one entry each."""
        pairs = np.repeat(np.arange(len(self.routes)), [len(route) for route in self.routes])
        return pairs, np.fromiter(
            itertools.chain.from_iterable(self.routes), dtype=np.int64, count=len(pairs)
        )

    def costs(self, prices: Floats) -> Floats:
        """Returns (n, n): what it costs, at a price per byte of each direction, to send from s to d."""
        pairs, links = self._crossings
        n = self.num_ranks
        costs: Floats = np.bincount(pairs, weights=prices[links], minlength=n * n).astype(np.float64)
        return costs.reshape(n, n)

    def loads(self, sends: Sequence[tuple[int, int]]) -> Floats:
        """Returns how many of the sends cross each direction."""
        load = np.zeros(len(self.rates))
        for src, dst in sends:
            load[list(self.route(src, dst))] += 1
        return load
