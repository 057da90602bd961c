"""Spanning trees packed into the links of a network, and a proof that no packing is much better.

An all-reduce along a tree adds up its edges to the root and copies down again, so every edge loads its route once in
each direction, whichever rank is the root. Splitting the buffer over trees of weights w, the busiest link decides:

    T = max over links e of Σ w_k·load_k(e) / rate(e),    Σ w = 1,

and by linear programming's duality no packing is faster than, for any prices p on the links,

    (cost of the cheapest spanning tree at p) / Σ p(e)·rate(e).

Prices on the links of one cut alone give the cut's bound: a tree crosses it once at least. Where such a price proves a
packing optimal, that is all; else the linear program is solved, trees being found as they are needed, the cheapest at
the prices of those so far (column generation). ForestColl (Zhao et al. 2024, arXiv:2402.06787) finds the same optimum
for switches that take any route, by max-flow and edge splitting; here routes are the network's, as they are where
programs run on sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tightwire.architecture.allreduce.builders.synthesis.wiring import Floats, Wiring

# Parents of every rank, -1 for the root's.
Tree = tuple[int, ...]

# Trees of the linear program; it was exact after 10 to 35 of them on graphs of 4 to 18 ranks.
MOST_COLUMNS = 200
EXACT = 1e-6
# How steeply prices grow with load when the trees of a packing are chosen one by one.
STEEPNESS = 12.0
IMPROVEMENTS = 6
# A packing this near its bound is not worth more trees.
CLOSE = 1.005
# So many of the smallest counts of trees are compared by their streams too.
SMALL_COUNTS = 3
# Streams on the busiest link, the longest over the mean, that are alike enough.
ALIKE = 1.05
# Above so many ranks, the linear program is solved only where simple prices prove too little.
MOST_SOLVED = 32
# Slowest kinds of links that bounds are tried for.
MOST_KINDS = 8


@dataclass(frozen=True)
class Packing:
    """Trees of equal weight.

    Attributes:
        trees: as parents.
        s_per_byte: of the buffer, when the busiest link works all the time.
    """

    trees: tuple[Tree, ...]
    s_per_byte: float


def bound_s_per_byte(wiring: Wiring) -> tuple[float, Floats]:
    """Returns the best bound of simple prices, and those: one kind of link, or one link, or all by what they carry."""
    rates, everyone = np.array(wiring.rates), range(wiring.num_ranks)
    crossed = wiring.loads([(s, d) for s in everyone for d in everyone if s != d]) > 0
    kinds = sorted({float(rate) for rate in rates[crossed]})
    candidates = [np.where(crossed, 1 / rates, 0.0)]
    candidates += [np.where(crossed & (rates <= rate), 1.0, 0.0) for rate in kinds[:MOST_KINDS]]
    candidates += [np.where(crossed & (rates == rate), 1.0, 0.0) for rate in kinds[:MOST_KINDS]]
    firsts = [int(np.flatnonzero(crossed & (rates == rate))[0]) for rate in kinds[:MOST_KINDS]]
    candidates += [np.eye(1, len(rates), link)[0] for link in firsts]
    bounds = [proven(wiring, prices) for prices in candidates]
    best = int(np.argmax(bounds))
    return bounds[best], candidates[best]


def proven(wiring: Wiring, prices: Floats) -> float:
    """Returns the bound that prices prove, in seconds per byte of the buffer."""
    load = tree_load(wiring, cheapest_tree(wiring.costs(prices)))
    return float(load @ prices) / float(prices @ np.array(wiring.rates))


def solve(wiring: Wiring, start: Sequence[Tree]) -> tuple[list[tuple[Tree, float]], float, Floats]:
    """Solves the linear program: trees with weights, and the bound with its prices.

    Args:
        wiring: the network.
        start: trees to begin with, one at least.
    """
    from scipy.optimize import linprog

    fastest = max(wiring.rates)
    rates = np.array(wiring.rates) / fastest  # the solver's tolerances are absolute
    trees = list(dict.fromkeys(start))
    columns = [tree_load(wiring, tree) / rates for tree in trees]
    best, proof, weights = 0.0, 1 / rates, np.ones(1)
    for _ in range(MOST_COLUMNS):
        k = len(columns)
        found = linprog(
            np.r_[np.zeros(k), 1.0],
            A_ub=np.c_[np.array(columns).T, -np.ones(len(rates))],
            b_ub=np.zeros(len(rates)),
            A_eq=[np.r_[np.ones(k), 0.0]],
            b_eq=[1.0],
            method="highs",
        )
        weights, prices = found.x[:k], np.maximum(-found.ineqlin.marginals, 0.0) / rates
        tree = cheapest_tree(wiring.costs(prices))
        if (bound := proven(wiring, prices)) > best:
            best, proof = bound, prices
        if best * fastest >= found.fun * (1 - EXACT) or tree in trees:
            break
        trees.append(tree)
        columns.append(tree_load(wiring, tree) / rates)
    used = [(tree, float(weight)) for tree, weight in zip(trees, weights, strict=False) if weight > EXACT]
    return used, best, proof


def pack(wiring: Wiring, counts: Sequence[int]) -> tuple[Packing, float, Floats]:
    """Returns the best packing among those of as many trees as `counts` has, and its bound with the prices.

    The first that is close to the bound is taken: fewer trees have larger chunks.
    """
    bound, prices = bound_s_per_byte(wiring)
    best = _best(
        wiring, [_improved(wiring, _greedy(wiring, count, bound), bound) for count in counts[:SMALL_COUNTS]]
    )
    if _is_good(wiring, best, bound) or (wiring.num_ranks > MOST_SOLVED and best.s_per_byte <= bound * CLOSE):
        return best, bound, prices
    used, exact, proof = solve(wiring, best.trees)
    if exact > bound:
        bound, prices = exact, proof
    for count in counts:
        shared = _improved(wiring, _shared(used, count), bound)
        best = _best(wiring, [best, shared, _improved(wiring, _greedy(wiring, count, bound), bound)])
        if _is_good(wiring, best, bound):
            break
    return best, bound, prices


def _best(wiring: Wiring, packings: Sequence[Packing]) -> Packing:
    return min(packings, key=lambda packing: _merit(wiring, packing))


def _is_good(wiring: Wiring, packing: Packing, bound: float) -> bool:
    return packing.s_per_byte <= bound * CLOSE and _merit(wiring, packing)[1] <= ALIKE


def _merit(wiring: Wiring, packing: Packing) -> tuple[float, float]:
    """Returns by what packings are compared: what the busiest link carries, then how unlike its streams are.

    Streams share a link equally, and ranks take pieces in turn: all wait for the longest stream.
    """
    rates = np.array(wiring.rates)
    streams: dict[tuple[int, int], int] = {}
    for tree in packing.trees:
        for rank, parent in enumerate(centred(tree)):
            if parent >= 0:
                for pair in ((rank, parent), (parent, rank)):
                    streams[pair] = streams.get(pair, 0) + 1
    loads = np.sum([tree_load(wiring, tree) for tree in packing.trees], axis=0) / rates
    busiest = set(np.flatnonzero(loads >= loads.max() * 0.99).tolist())
    here: dict[int, list[int]] = {link: [] for link in busiest}
    for (src, dst), count in streams.items():
        for link in busiest.intersection(wiring.route(src, dst)):
            here[link].append(count)
    unlike = max((max(counts) * len(counts) / sum(counts) for counts in here.values() if counts), default=1.0)
    return float(f"{packing.s_per_byte:.3g}"), unlike


def _shared(used: Sequence[tuple[Tree, float]], count: int) -> list[Tree]:
    """Shares `count` equal chunks out by weight, the largest remainders first."""
    whole = [int(weight * count) for _, weight in used]
    by_rest = sorted(range(len(used)), key=lambda i: whole[i] - used[i][1] * count)
    for i in by_rest[: count - sum(whole)]:
        whole[i] += 1
    return [tree for (tree, _), times in zip(used, whole, strict=True) for _ in range(times)]


def _greedy(wiring: Wiring, count: int, bound: float) -> list[Tree]:
    """Chooses trees one by one, the cheapest at prices that grow with what links carry already."""
    total = np.zeros(len(wiring.rates))
    trees: list[Tree] = []
    for _ in range(count):
        trees.append(cheapest_tree(wiring.costs(_prices(wiring, total, count, bound))))
        total = total + tree_load(wiring, trees[-1])
    return trees


def _improved(wiring: Wiring, trees: Sequence[Tree], bound: float) -> Packing:
    """Replaces one tree after the other by the cheapest beside the others, while that helps."""
    rates, count = np.array(wiring.rates), len(trees)
    loads = [tree_load(wiring, tree) for tree in trees]
    total = np.sum(loads, axis=0)
    now, kept = list(trees), list(trees)
    best = float((total / rates).max())
    for _ in range(IMPROVEMENTS if wiring.num_ranks * count <= 4096 else 0):
        if best / count <= bound * CLOSE:
            break
        for k in range(count):
            total = total - loads[k]
            now[k] = cheapest_tree(wiring.costs(_prices(wiring, total, count, bound)))
            loads[k] = tree_load(wiring, now[k])
            total = total + loads[k]
        busiest = float((total / rates).max())
        if busiest >= best * (1 - 1e-9):
            break
        best, kept = busiest, list(now)
    return Packing(tuple(kept), best / count)


def _prices(wiring: Wiring, total: Floats, count: int, bound: float) -> Floats:
    """Returns prices by load, relative to what a perfect packing would have put on a link by its end."""
    rates = np.array(wiring.rates)
    relative = total / rates / (count * bound)
    return np.asarray(np.exp(STEEPNESS * (relative - relative.max())) / rates)


def cheapest_tree(costs: Floats) -> Tree:
    """Returns the cheapest spanning tree by Prim's algorithm, both directions of an edge counted, as parents.

    Of edges equally cheap it takes those to the rank that joined first: trees stay shallow. The root is rank 0.

    >>> cheapest_tree(np.array([[0, 1, 9], [1, 0, 1], [9, 1, 0.0]]))
    (-1, 0, 1)
    """
    both = costs + costs.T
    n = len(both)
    reach, parents = both[0].copy(), np.zeros(n, dtype=np.int64)
    outside = np.ones(n, dtype=bool)
    outside[0] = False
    for _ in range(n - 1):
        near = int(np.argmin(np.where(outside, reach, np.inf)))
        outside[near] = False
        closer = outside & (both[near] < reach * (1 - 1e-12))
        reach[closer], parents[closer] = both[near][closer], near
    parents[0] = -1
    return tuple(int(parent) for parent in parents)


def tree_load(wiring: Wiring, tree: Tree) -> Floats:
    """Returns how often an all-reduce along a tree crosses each direction of each link."""
    up = [(rank, parent) for rank, parent in enumerate(tree) if parent >= 0]
    return wiring.loads([*up, *((parent, rank) for rank, parent in up)])


def centred(tree: Tree) -> Tree:
    """Returns the same tree with a root from which no rank is farther than it must be.

    >>> centred((-1, 0, 1, 2, 3))
    (1, 2, -1, 2, 3)
    """
    near = neighbours(tree)
    path = _longest(near, _longest(near, 0)[-1])
    return rooted(near, path[len(path) // 2])


def neighbours(tree: Tree) -> list[list[int]]:
    """Returns the neighbours of every rank."""
    near: list[list[int]] = [[] for _ in tree]
    for rank, parent in enumerate(tree):
        if parent >= 0:
            near[rank].append(parent)
            near[parent].append(rank)
    return near


def rooted(near: Sequence[Sequence[int]], root: int) -> Tree:
    """Returns the parents of every rank when `root` is the root."""
    parents = [-1] * len(near)
    queue = [root]
    for rank in queue:
        for other in near[rank]:
            if other != parents[rank]:
                parents[other] = rank
                queue.append(other)
    return tuple(parents)


def _longest(near: Sequence[Sequence[int]], start: int) -> list[int]:
    """Returns the longest path from a rank."""
    parents = rooted(near, start)
    depth = [0] * len(near)
    last = start
    queue = [start]
    for rank in queue:
        if depth[rank] > depth[last]:
            last = rank
        for other in near[rank]:
            if other != parents[rank]:
                depth[other] = depth[rank] + 1
                queue.append(other)
    path = [last]
    while path[-1] != start:
        path.append(parents[path[-1]])
    return path[::-1]
