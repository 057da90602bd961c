"""The graphs that gossip goes along: for N workers, one mixing matrix per round, over and over.

A new one is a function and a line in `GRAPHS`. Drawn ones repeat after `DRAWS` rounds, so that what is said of a
period, that it connects everybody, is proven and not only likely.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from tightwire.architecture.gossip.matcha import activation, first_matching
from tightwire.architecture.gossip.mixing import ROUNDING, Mixing, is_connected
from tightwire.errors import ProgramError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAWS = 256
_CANDIDATES = 16


@dataclass(frozen=True)
class Graph:
    """Who mixes with whom, round by round.

    Attributes:
        name: as in `gossip:NAME`.
        num_ranks: N.
        period: rounds after which it repeats; 1 for a static graph.
        draw: the matrix of a round, from 0 within the period.
    """

    name: str
    num_ranks: int
    period: int
    draw: Callable[[int], Mixing]
    _drawn: dict[int, Mixing] = field(default_factory=dict, repr=False, compare=False)

    def at(self, round_number: int) -> Mixing:
        """Returns the matrix of a round, counted from 1."""
        index = (round_number - 1) % self.period
        if index not in self._drawn:
            self._drawn[index] = self.draw(index)
        return self._drawn[index]

    @property
    def is_static(self) -> bool:
        """Whether all rounds are alike."""
        return self.period == 1

    @property
    def is_symmetric(self) -> bool:
        """Whether who hears is always heard."""
        return all(self.at(number).is_symmetric for number in range(1, self.period + 1))

    def neighbours(self, rank: int) -> tuple[int, ...]:
        """Returns all with whom `rank` ever exchanges a message, ascending."""
        edges = (edge for number in range(1, self.period + 1) for edge in self.at(number).edges())
        return tuple(sorted({a + b - rank for a, b in edges if rank in (a, b)}))

    def above(self, bound: float) -> Graph:
        """Returns this symmetric graph with every matrix that has an eigenvalue at or below `bound` made lazy."""

        def draw(index: int) -> Mixing:
            mixing = self.at(index + 1)
            return mixing if mixing.least_eigenvalue > bound + ROUNDING else mixing.lazy

        return Graph(self.name, self.num_ranks, self.period, draw)

    def product(self) -> NDArray[np.float64]:
        """Returns what one period does: the product of its matrices, the last one first."""
        import numpy as np

        result = np.eye(self.num_ranks)
        for number in range(1, self.period + 1):
            result = self.at(number).dense() @ result
        return result


def ring(n: int) -> Graph:
    """Hears both neighbours on a ring."""
    return _static("ring", Mixing.uniform(n, _hops(n, [1]), both_ways=True))


def torus(n: int) -> Graph:
    """Hears four neighbours on the squarest a × b torus.

    Raises:
        ProgramError: a prime number of workers has none; names the nearest that have.
    """
    height = max(a for a in range(1, math.isqrt(n) + 1) if n % a == 0)
    if height == 1:
        legal = sorted((m for m in range(4, n + 5) if _is_composite(m)), key=lambda m: abs(m - n))[:3]
        raise ProgramError(
            f"gossip:torus over {n} workers: a torus needs a × b of them with a, b ≥ 2, as "
            f"{', '.join(map(str, sorted(legal)))}; ring, exponential and expander take any number."
        )
    width = n // height
    places = itertools.product(range(height), range(width))
    edges = [
        (a * width + b, c)
        for a, b in places
        for c in (a * width + (b + 1) % width, (a + 1) % height * width + b)
    ]
    return _static("torus", Mixing.uniform(n, edges, both_ways=True))


def complete(n: int) -> Graph:
    """Hears everybody: one round is the exact mean."""
    return _static("complete", Mixing.uniform(n, itertools.permutations(range(n), 2)))


def star(n: int) -> Graph:
    """Hears worker 0 alone, which hears all."""
    return _static("star", Mixing.uniform(n, [(0, leaf) for leaf in range(1, n)], both_ways=True))


def exponential(n: int) -> Graph:
    """Hears those 1, 2, 4, … places before it (Ying et al. 2021, arXiv:2110.13363)."""
    return _static("exponential", Mixing.uniform(n, _hops(n, _powers(n))))


def one_peer_exponential(n: int) -> Graph:
    """Hears one worker per round, 1, 2, 4, … places before it in turn; for N = 2ᵏ, k rounds are the exact mean."""
    powers = _powers(n)
    return Graph(
        "one-peer-exponential", n, len(powers), lambda index: Mixing.uniform(n, _hops(n, [powers[index]]))
    )


def random_matching(n: int) -> Graph:
    """Pairs all workers at random, anew in every round; where N is odd, one sits out."""

    def draw(index: int) -> Mixing:
        ranks = _shuffled(n, f"random-matching/{index}")
        return Mixing.uniform(n, zip(ranks[0:-1:2], ranks[1::2], strict=False), both_ways=True)

    return Graph("random-matching", n, DRAWS, draw)


def expander(n: int) -> Graph:
    """Hears four: the best of some random pairs of rings through all workers, which connect well at any N."""

    def draw(attempt: int) -> Mixing:
        tours = (_shuffled(n, f"expander/{attempt}/{tour}") for tour in range(2))
        edges = [edge for tour in tours for edge in zip(tour, tour[1:] + tour[:1], strict=True)]
        return Mixing.uniform(n, edges, both_ways=True)

    # Rounded: machines that differ in the last bits choose alike.
    return _static(
        "expander", max(map(draw, range(_CANDIDATES)), key=lambda mixing: round(mixing.spectral_gap, 6))
    )


def gossipgrad(n: int) -> Graph:
    """Hears one worker per round, at distances 1, 2, 4, … in an order of all workers that rotates.

    Daily et al. 2018, arXiv:1803.05880, section 4.5: once all distances had their turn, partners are shuffled.
    """
    powers = _powers(n)

    def draw(index: int) -> Mixing:
        order = _shuffled(n, f"gossipgrad/{index // len(powers)}")
        hop = powers[index % len(powers)]
        return Mixing.uniform(n, [(order[place], order[(place + hop) % n]) for place in range(n)])

    return Graph("gossipgrad", n, DRAWS // len(powers) * len(powers), draw)


def bandwidth(n: int, rates: Sequence[Sequence[float]] = ()) -> Graph:
    """Pairs workers anew in every round, along fast links mostly, and often enough along slow ones to connect all.

    After Tang et al. 2020, arXiv:2002.09692, algorithm 3, without its coordinator: all workers draw the same. Three
    rounds of four take pairs from the fastest links down, in random order where links are as fast as each other to a
    factor of two; every fourth takes them from all links alike.

    Args:
        n: N.
        rates: bytes per second between any two workers, symmetric; none known: all links are alike.
    """

    def slowness(edge: tuple[int, int]) -> int:
        return -round(math.log2(max(rates[edge[0]][edge[1]], 1.0)))

    def draw(index: int) -> Mixing:
        edges = [(a, b) for b in range(n) for a in range(b)]
        random.Random(f"bandwidth/{index}").shuffle(edges)
        if rates and index % 4:
            edges.sort(key=slowness)
        return Mixing.uniform(n, first_matching(edges), both_ways=True)

    return Graph("bandwidth", n, DRAWS, draw)


def matcha(n: int, base: str = "expander", budget: float = 0.5) -> Graph:
    """Activates the matchings of a static graph at random, within a budget (see `Activation`).

    Args:
        n: N.
        base: a static graph whose edges go both ways.
        budget: the share of its matchings that a round activates on average.
    """
    plan = activation(n, [(a, b) for a, b in build_graph(base, n).at(1).edges() if a < b], budget)

    def draw(index: int) -> Mixing:
        edges = plan.draw(random.Random(f"matcha/{index}"))
        return Mixing.of(n, {pair: plan.alpha for a, b in edges for pair in ((a, b), (b, a))})

    return Graph("matcha", n, DRAWS, draw)


@dataclass(frozen=True, kw_only=True)
class GraphRecipe:
    """A graph for any number of workers, and what is known of it before that number is.

    Attributes:
        build: from N.
        is_static: all rounds are alike.
        is_symmetric: who hears is heard.
        is_tried: whether the planner considers it; the others only when named.
        paper: where it is from.
    """

    build: Callable[[int], Graph]
    is_static: bool = True
    is_symmetric: bool = True
    is_tried: bool = True
    paper: str = "Xiao and Boyd 2004, Fast linear iterations for distributed averaging"

    @property
    def title(self) -> str:
        """What the graph is: the first line of its builder's docstring."""
        return (self.build.__doc__ or "").partition("\n")[0].rstrip(".")

    @property
    def carries_matcha(self) -> bool:
        """Whether it falls into matchings that stay the same."""
        return self.is_static and self.is_symmetric


GRAPHS: dict[str, GraphRecipe] = {
    "ring": GraphRecipe(build=ring),
    "torus": GraphRecipe(build=torus, is_tried=False),
    "complete": GraphRecipe(build=complete, is_tried=False),
    "star": GraphRecipe(build=star, is_tried=False),
    "exponential": GraphRecipe(
        build=exponential,
        is_symmetric=False,
        paper="Assran et al. 2019, Stochastic gradient push, arXiv:1811.10792",
    ),
    "one-peer-exponential": GraphRecipe(
        build=one_peer_exponential,
        is_static=False,
        is_symmetric=False,
        paper="Ying et al. 2021, Exponential graph is provably efficient, arXiv:2110.13363",
    ),
    "random-matching": GraphRecipe(build=random_matching, is_static=False, is_tried=False),
    "bandwidth": GraphRecipe(
        build=bandwidth,
        is_static=False,
        is_tried=False,
        paper="Tang et al. 2020, SAPS-PSGD, arXiv:2002.09692",
    ),
    "expander": GraphRecipe(build=expander, is_tried=False),
    "matcha": GraphRecipe(
        build=matcha, is_static=False, is_tried=False, paper="Wang et al. 2019, MATCHA, arXiv:1905.09435"
    ),
    "gossipgrad": GraphRecipe(
        build=gossipgrad,
        is_static=False,
        is_symmetric=False,
        is_tried=False,
        paper="Daily et al. 2018, GossipGraD, arXiv:1803.05880",
    ),
}


@lru_cache(maxsize=128)
def build_graph(name: str, num_ranks: int, base: str = "expander", budget: float = 0.5) -> Graph:
    """Returns the graph `name` over `num_ranks` workers, proven connected over its period.

    Args:
        name: one of `GRAPHS`.
        num_ranks: N, at least 2.
        base: for matcha, the graph that it activates parts of.
        budget: for matcha, which share of it.

    Raises:
        ProgramError: an unknown name, an N for which there is none, or a graph that does not connect all.
    """
    if name not in GRAPHS:
        raise ProgramError(f"{name!r} is no known graph; known: {', '.join(sorted(GRAPHS))}.")
    if num_ranks < 2:
        raise ProgramError(f"gossip:{name} over {num_ranks} workers: gossip needs at least 2.")
    graph = matcha(num_ranks, base, budget) if name == "matcha" else GRAPHS[name].build(num_ranks)
    return connected(graph)


def connected(graph: Graph) -> Graph:
    """Returns `graph` if everybody's value reaches everybody within its period.

    Raises:
        ProgramError: it does not, so that workers would never agree.
    """
    edges: set[tuple[int, int]] = set()
    for number in range(1, graph.period + 1):
        before = len(edges)
        edges |= set(graph.at(number).edges())
        if len(edges) > before and is_connected(graph.num_ranks, edges):
            return graph
    raise ProgramError(
        f"{graph.name} over {graph.num_ranks} workers is not connected over its period of {graph.period} rounds: "
        "some would never hear of others. Add edges, or take exponential, which connects any number."
    )


def _static(name: str, mixing: Mixing) -> Graph:
    return Graph(name, mixing.num_ranks, 1, lambda index: mixing)


def _powers(n: int) -> list[int]:
    return [1 << k for k in range(max(1, (n - 1).bit_length()))]


def _hops(n: int, distances: Iterable[int]) -> list[tuple[int, int]]:
    return [(rank, (rank + hop) % n) for hop in distances for rank in range(n)]


def _shuffled(n: int, seed: str) -> list[int]:
    ranks = list(range(n))
    random.Random(seed).shuffle(ranks)
    return ranks


def _is_composite(m: int) -> bool:
    return any(m % a == 0 for a in range(2, math.isqrt(m) + 1))
