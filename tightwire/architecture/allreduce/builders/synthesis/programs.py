"""Programs from packed trees: all-reduce, reduce-scatter, all-gather and all-to-all, each with its certificate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tightwire.architecture.allreduce.builders.movements import all_to_all
from tightwire.architecture.allreduce.builders.synthesis.packing import (
    centred,
    cheapest_tree,
    neighbours,
    pack,
    rooted,
)
from tightwire.architecture.allreduce.builders.synthesis.wiring import Floats, Wiring
from tightwire.architecture.allreduce.builders.trees import all_reduce_along, down, up
from tightwire.architecture.allreduce.program import Program, Transfer
from tightwire.errors import ProgramError

NAME = "synthesised"
GOALS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all")
# As many trees as ranks make every rank a root once; more split the buffer finer where links are uneven.
MOST_TREES = 64
STEEPNESS = 12.0
# Where links differ by this factor, a piece takes long on the slowest, and pieces are made smaller.
UNEVEN = 1.5
UNEVEN_SHARE, EVEN_SHARE = 8, 4


@dataclass(frozen=True)
class Certificate:
    """How good a program is, and the proof.

    Attributes:
        achieved_s_per_byte: of the buffer, by what the busiest link carries.
        bound_s_per_byte: that nothing of its kind beats: by the prices.
        prices: of each direction of each link.
    """

    achieved_s_per_byte: float
    bound_s_per_byte: float
    prices: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Achieved over bound; 1 is optimal."""
        return self.achieved_s_per_byte / self.bound_s_per_byte if self.bound_s_per_byte else 1.0


@dataclass(frozen=True)
class Synthesis:
    """A program and its certificate."""

    program: Program
    certificate: Certificate


@lru_cache(maxsize=64)
def synthesise(wiring: Wiring, goal: str = "all-reduce") -> Synthesis:
    """Makes a program for one network.

    Args:
        wiring: its links and routes.
        goal: `all-reduce`, `reduce-scatter`, `all-gather` or `all-to-all`; chunks of the middle two are the ranks'.

    Raises:
        ProgramError: another goal.

    >>> found = synthesise(Wiring.star([1.0] * 4))
    >>> round(found.certificate.achieved_s_per_byte, 3), round(found.certificate.ratio, 3)
    (1.5, 1.0)
    """
    if goal not in GOALS:
        raise ProgramError(f"{goal} cannot be synthesised; these can: {', '.join(GOALS)}.")
    if wiring.num_ranks == 1:
        chunks = 1
        return Synthesis(Program(NAME, 1, chunks, (), goal=goal, flows=True), Certificate(0.0, 0.0, ()))
    if goal == "all-reduce":
        return _all_reduce(wiring)
    if goal == "all-to-all":
        return _all_to_all(wiring)
    return _gather(wiring, goal)


def _all_reduce(wiring: Wiring) -> Synthesis:
    n = wiring.num_ranks
    several = (k * trees for k in range(1, 9) for trees in (n - 1, n))
    counts = sorted({min(n, MOST_TREES), *(count for count in several if 2 <= count <= MOST_TREES)})
    packing, bound, prices = pack(wiring, counts)
    transfers = [
        transfer
        for chunk, tree in enumerate(packing.trees)
        for transfer in all_reduce_along(centred(tree), chunk)
    ]
    transfers.sort(key=lambda t: t.step)
    share = UNEVEN_SHARE if max(wiring.rates) > UNEVEN * min(wiring.rates) else EVEN_SHARE
    program = Program(NAME, n, len(packing.trees), tuple(transfers), flows=True, piece_share=share)
    return Synthesis(program, _certificate(wiring, program, bound, prices))


def _gather(wiring: Wiring, goal: str) -> Synthesis:
    """Spreads every rank's chunk down a tree of its own, or adds it up one."""
    n = wiring.num_ranks
    rates = np.array(wiring.rates)
    total = np.zeros(len(rates))
    bound, prices = _gather_bound(wiring, goal)
    transfers: list[Transfer] = []
    for chunk in range(n):
        relative = total / rates / (n * bound * n)
        priced = np.exp(STEEPNESS * (relative - relative.max()) * n) / rates
        tree = rooted(neighbours(cheapest_tree(wiring.costs(priced))), chunk)
        edges = [(tree[rank], rank) for rank in range(n) if tree[rank] >= 0]
        sends = edges if goal == "all-gather" else [(rank, parent) for parent, rank in edges]
        total = total + wiring.loads(sends)
        transfers += down(tree, chunk, 0) if goal == "all-gather" else up(tree, chunk, 0)
    transfers.sort(key=lambda t: t.step)
    program = Program(f"{NAME} {goal}", n, n, tuple(transfers), goal=goal, flows=True)
    return Synthesis(program, _certificate(wiring, program, bound, prices))


def _gather_bound(wiring: Wiring, goal: str) -> tuple[float, Floats]:
    """Returns the bound by links that are a cut: what is behind one receives a share of 1/n for each rank before it."""
    n, rates = wiring.num_ranks, np.array(wiring.rates)
    crossings = _crossings(wiring)
    # Every rank receives, or sends, all but its own share, over whatever links there are.
    used = np.array([bool(pairs) for pairs in crossings])
    best, proof = (n - 1) / float(rates[used].sum()), used.astype(float)
    for link, pairs in enumerate(crossings):
        before, behind = {src for src, _ in pairs}, {dst for _, dst in pairs}
        if before & behind or len(before) + len(behind) < n or len(pairs) < len(before) * len(behind):
            continue
        shares = len(before) if goal == "all-gather" else len(behind)
        if (bound := shares / n / float(rates[link])) > best:
            best, proof = bound, np.eye(1, len(rates), link)[0]
    return best, proof


def _crossings(wiring: Wiring) -> list[set[tuple[int, int]]]:
    """Returns the pairs of ranks whose route crosses each direction."""
    found: list[set[tuple[int, int]]] = [set() for _ in wiring.rates]
    n = wiring.num_ranks
    for src in range(n):
        for dst in range(n):
            for link in wiring.route(src, dst):
                found[link].add((src, dst))
    return found


def _all_to_all(wiring: Wiring) -> Synthesis:
    """Sends straight: every block crosses its route whatever the order, and that load is the bound."""
    n = wiring.num_ranks
    program = all_to_all(n)
    load = wiring.loads([(t.src, t.dst) for t in program.transfers]) / n / np.array(wiring.rates)
    busiest = int(load.argmax())
    bound = float(load[busiest])
    named = Program(f"{NAME} all-to-all", n, n * n, program.transfers, goal="all-to-all")
    return Synthesis(named, Certificate(bound, bound, tuple(np.eye(1, len(load), busiest)[0])))


def _certificate(wiring: Wiring, program: Program, bound: float, prices: Floats) -> Certificate:
    load = wiring.loads([(t.src, t.dst) for t in program.transfers])
    achieved = float((load / np.array(wiring.rates)).max()) / program.num_chunks
    return Certificate(achieved, bound, tuple(float(price) for price in prices))
