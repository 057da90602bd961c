"""All-reduces along the sides of a box of ranks: torus, BlueConnect, halving-doubling, hierarchical.

Rank r stands at r's digits in the mixed radix of the shape, the last side counting fastest: in a box of 2x4, ranks
0 to 3 are a row. A reduce-scatter along the last side leaves each rank with the sums, over its row, of the chunks
whose last digit is its own; along the next side, of those of them whose digit there is its own too; all-gathers go
back. Chunk r ends at rank r in between, and every rank sends 2(n−1)/n of the buffer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from tightwire.architecture.allreduce.builders.recipe import Shape, require_shape
from tightwire.architecture.allreduce.program import Op, Program, Transfer
from tightwire.errors import ProgramError


@dataclass(frozen=True)
class Box:
    """Ranks in a box, and their transfers along its sides."""

    shape: Shape

    @cached_property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """The digits of every rank."""
        return tuple(itertools.product(*map(range, self.shape)))

    def at(self, place: Sequence[int]) -> int:
        """Returns the rank with these digits."""
        rank = 0
        for digit, side in zip(place, self.shape, strict=True):
            rank = rank * side + digit
        return rank

    def all_reduce(self, first_step: int = 0) -> Iterator[Transfer]:
        """Yields reduce-scatters along the sides, last side first, and all-gathers back."""
        step = first_step
        for axis in reversed(range(len(self.shape))):
            yield from self.ring(axis, step, "reduce")
            step += self.shape[axis] - 1
        for axis in range(len(self.shape)):
            yield from self.ring(axis, step, "copy")
            step += self.shape[axis] - 1

    @property
    def num_steps(self) -> int:
        """How many steps `all_reduce` takes."""
        return 2 * sum(side - 1 for side in self.shape)

    def ring(self, axis: int, first_step: int, op: Op) -> Iterator[Transfer]:
        """Yields a reduce-scatter or an all-gather around every ring along a side."""
        side = self.shape[axis]
        for step in range(side - 1):
            for rank, place in enumerate(self.places):
                x = place[axis]
                digit = (x - 1 - step if op == "reduce" else x - step) % side
                dst = self.at((*place[:axis], (x + 1) % side, *place[axis + 1 :]))
                for chunk in self._chunks(place, axis, digit):
                    yield Transfer(first_step + step, rank, dst, chunk, op)

    def _chunks(self, place: tuple[int, ...], axis: int, digit: int) -> range:
        """Returns the chunks that have the place's digits after `axis`, and `digit` there."""
        later = math.prod(self.shape[axis + 1 :])
        first = self.at((*[0] * axis, digit, *place[axis + 1 :]))
        return range(first, math.prod(self.shape), later * self.shape[axis])


def torus(n: int, shape: Shape) -> Program:
    """Reduce-scatters rows, all-reduces columns, all-gathers rows: 2(a−1)α + 2(b−1)α + 2(n−1)/n·Mβ.

    A shape of `axb` has rows of b neighbours in rank. Pieces flow through the phases, so that the links of both sides
    are busy all the time.
    """
    if len(shape) != 2:
        raise ProgramError(
            f"torus has two sides, and {len(shape)} were asked for; write for example shape=2x4."
        )
    return _box("torus", n, shape)


def blueconnect(n: int, shape: Shape) -> Program:
    """Reduce-scatters along each side in turn, the last first, and all-gathers back: Σ 2(side−1)α + 2(n−1)/n·Mβ.

    Each side's traffic goes over its own kind of link where ranks are numbered so.
    """
    return _box("blueconnect", n, shape)


def hierarchical(n: int, shape: Shape) -> Program:
    """Reduce-scatters inside nodes, all-reduces every shard across them, all-gathers inside: by level.

    A shape of `axb` is a nodes of b ranks that are neighbours in rank; with more sides, sites of nodes of ranks.
    Where M bytes are averaged, a node sends 2(a−1)/a·M to others, the least that can be. Pieces flow through the
    levels, so that the slowest of them works from first to last.
    """
    if len(shape) < 2:
        raise ProgramError(
            "hierarchical has two levels or more; write for example shape=2x4: 2 nodes of 4 ranks."
        )
    return _box("hierarchical", n, shape)


def _box(name: str, n: int, shape: Shape) -> Program:
    require_shape(name, n, shape)
    return Program(name, n, n, tuple(Box(shape).all_reduce()), flows=True)


# Parts into which a balanced collective cuts every chunk, each with an order of sides of its own.
PARTS = 4


def balanced(n: int, shape: Shape, speeds: tuple[float, float] = (1.0, 1.0)) -> Program:
    """Is `hierarchical` whose parts choose which side comes first, so that both sides are equally busy.

    A part that begins inside loads the inside by 2(b−1)/b of itself and the links across by 2(a−1)/(a·b); one that
    begins across does it the other way around. Each part takes the order under which the busier side carries least so
    far (Rashidi et al. 2022, Themis, arXiv:2110.04478, algorithm 1, for two dimensions).

    Args:
        n: ranks.
        shape: `axb`: a nodes of b ranks.
        speeds: of the links across nodes and inside them, in any unit; alike if nobody told.

    Raises:
        ProgramError: a shape of other than two sides.
    """
    if len(shape) != 2:
        raise ProgramError(f"balanced collectives have two sides, and {len(shape)} were asked for.")
    require_shape("hierarchical", n, shape)
    a, b = shape
    box, turned = Box((a, b)), Box((b, a))
    across = [2 * (a - 1) / a / b / speeds[0], 2 * (a - 1) / a / speeds[0]]  # inside first, across first
    inside = [2 * (b - 1) / b / speeds[1], 2 * (b - 1) / b / a / speeds[1]]
    load, transfers = [0.0, 0.0], list[Transfer]()
    for part in range(PARTS):
        order = min((0, 1), key=lambda first: max(load[0] + across[first], load[1] + inside[first]))
        load = [load[0] + across[order], load[1] + inside[order]]
        # Rank i·b + j of the box is rank j·a + i of the box turned around.
        place = [rank % a * b + rank // a for rank in range(n)] if order else list(range(n))
        transfers += [
            Transfer(t.step, place[t.src], place[t.dst], part * n + t.chunk, t.op)
            for t in (turned if order else box).all_reduce()
        ]
    transfers.sort(key=lambda t: t.step)
    return Program("hierarchical", n, PARTS * n, tuple(transfers), flows=True)


def halving_doubling(n: int) -> Program:
    """Exchanges ever smaller halves until each rank has one chunk's sum, and back: 2log₂n·α + 2(n−1)/n·Mβ.

    A box whose sides are all 2. Pieces flow, so that streams between partners last, where they would start and stop.
    Reductions cost (n−1)/n·Mγ. Where n is no power of two, the ranks beyond the largest one below n hand their
    contribution to a partner first and receive the sum last: 2α + Mβ more at full duplex.
    """
    core = 1 << (n.bit_length() - 1)
    box = Box((2,) * (core.bit_length() - 1))
    chunks = range(core)
    fold = [Transfer(0, rank, rank - core, chunk, "reduce") for rank in range(core, n) for chunk in chunks]
    last = 1 + box.num_steps
    unfold = [Transfer(last, rank - core, rank, chunk, "copy") for rank in range(core, n) for chunk in chunks]
    inside = box.all_reduce(first_step=1)
    return Program("halving-doubling", n, core, (*fold, *inside, *unfold), flows=True)


def uneven_hierarchical(nodes: Sequence[Sequence[int]]) -> Program:
    """Is `hierarchical` for nodes of any sizes and any ranks: those beyond the smallest node's hand in and get back.

    As many shards as the smallest node has ranks; in larger nodes the ranks beyond give shard i to the node's i-th
    rank first, and receive its sum from there last.

    Args:
        nodes: the ranks of each node; together 0 … n−1.

    Raises:
        ProgramError: a rank that is missing or in two nodes.
    """
    n, m = sum(map(len, nodes)), min(map(len, nodes), default=0)
    if m == 0 or sorted(itertools.chain(*nodes)) != list(range(n)):
        raise ProgramError(f"nodes {[list(node) for node in nodes]} do not hold each of {n} ranks once.")
    box = Box((len(nodes), m))
    core = [rank for node in nodes for rank in node[:m]]  # by its number in the box
    extras = [(rank, node, i) for node in nodes for i, rank in enumerate(node[m:])]
    fold, unfold, pause = [], [], max(map(len, nodes)) - m
    for rank, node, i in extras:
        for shard in range(m):
            for chunk in range(shard, len(core), m):
                fold.append(Transfer(i, rank, node[shard], chunk, "reduce"))
                unfold.append(Transfer(pause + box.num_steps + i, node[shard], rank, chunk, "copy"))
    inside = [
        Transfer(t.step, core[t.src], core[t.dst], t.chunk, t.op) for t in box.all_reduce(first_step=pause)
    ]
    by_step = sorted((*fold, *inside, *unfold), key=lambda t: t.step)
    return Program("hierarchical", n, len(core), tuple(by_step), flows=True)
