"""A collective is data: who sends which chunk to whom, in which step, to be copied or added.

One program is checked (checker.py), run (runner.py), counted (traffic.py) and timed (`Program.seconds`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Op = Literal["copy", "reduce"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One chunk on its way in one step.

    `op` says what the receiver does: `reduce` adds it to its own value of the chunk, `copy` replaces it.
    All transfers of a step read the values that their senders had before the step.
    """

    step: int
    src: int
    dst: int
    chunk: int
    op: Op
    weight: float = 1.0


@dataclass(frozen=True)
class Program:
    """A collective over `num_ranks` ranks.

    Attributes:
        name: as in `allreduce:NAME`.
        num_ranks: N.
        num_chunks: C; a reducing program splits its buffer into C nearly equal chunks, a gathering one has
            one chunk per rank, each a whole message.
        transfers: ordered by step.
        gathers: False: every rank begins with a contribution to every chunk, and ends with the sum of all.
            True: rank r begins with chunk r alone, and every rank ends with all chunks, to be decoded and
            summed in rank order.
        native: the backend runs it by an algorithm of its own; `transfers` then says what is counted.
        goal: what it promises, by the name of one of the checker's goals.
        flows: the pieces of a chunk follow one another through the steps, as along a tree, so that a line is busy
            with several steps at once; else a rank ends a step before it begins the next.
        piece_share: how many times smaller than those of whole messages its pieces are, where sums travel: the first
            must have gone all the way before all lines are busy, and the streams of a rank with several partners take
            turns more often. Measured at 1 Gb/s; smaller ones cost more wake-ups, and pay where links are uneven.
    """

    name: str
    num_ranks: int
    num_chunks: int
    transfers: tuple[Transfer, ...]
    gathers: bool = False
    native: bool = False
    goal: str = "all-reduce"
    flows: bool = False
    piece_share: int = 4

    def steps(self) -> Iterator[tuple[int, tuple[Transfer, ...]]]:
        """Yields each step with its transfers."""
        for step, transfers in itertools.groupby(self.transfers, key=lambda t: t.step):
            yield step, tuple(transfers)

    def sends(self, rank: int) -> tuple[Transfer, ...]:
        """Returns what `rank` sends, in order."""
        return self._by_rank[0][rank]

    def receives(self, rank: int) -> tuple[Transfer, ...]:
        """Returns what `rank` receives, in order."""
        return self._by_rank[1][rank]

    def chunk_sizes(self, numel: int, multiple: int = 1) -> tuple[int, ...]:
        """Splits `numel` elements into chunks, nearly equal, all but the last a multiple of `multiple`."""
        return split(numel, self.num_chunks, multiple)

    def bytes_sent(self, rank: int, chunk_bytes: Sequence[int]) -> int:
        """Returns the payload bytes that `rank` sends when chunk c is `chunk_bytes[c]` bytes on the wire."""
        return sum(chunk_bytes[t.chunk] for t in self.sends(rank))

    def seconds(self, chunk_bytes: Sequence[int], latency_s: float, bytes_per_s: float) -> float:
        """Returns the α–β time: per step, one latency and the bytes of the busiest direction of any rank.

        Of a program that flows, all steps' latencies and the bytes of the busiest direction in all: small pieces.
        """
        if self.flows:
            return self._flow_s(chunk_bytes, latency_s, bytes_per_s)
        total_s = 0.0
        for _, transfers in self.steps():
            busy: dict[tuple[str, int], int] = {}
            for t in transfers:
                for end in (("out", t.src), ("in", t.dst)):
                    busy[end] = busy.get(end, 0) + chunk_bytes[t.chunk]
            total_s += latency_s + max(busy.values()) / bytes_per_s
        return total_s

    def _flow_s(self, chunk_bytes: Sequence[int], latency_s: float, bytes_per_s: float) -> float:
        num_steps = sum(1 for _ in self.steps())
        lines = (moved(rank) for moved in (self.sends, self.receives) for rank in range(self.num_ranks))
        busiest = max(sum(chunk_bytes[t.chunk] for t in line) for line in lines)
        return num_steps * latency_s + busiest / bytes_per_s

    @cached_property
    def _by_rank(self) -> tuple[tuple[tuple[Transfer, ...], ...], tuple[tuple[Transfer, ...], ...]]:
        sends: list[list[Transfer]] = [[] for _ in range(self.num_ranks)]
        receives: list[list[Transfer]] = [[] for _ in range(self.num_ranks)]
        for t in self.transfers:
            sends[t.src].append(t)
            receives[t.dst].append(t)
        return tuple(map(tuple, sends)), tuple(map(tuple, receives))


def split(numel: int, parts: int, multiple: int = 1) -> tuple[int, ...]:
    """Splits `numel` into nearly equal `parts`, all but the last a multiple of `multiple`.

    >>> split(10, 4), split(10, 4, multiple=4), split(2, 4)
    ((2, 3, 2, 3), (0, 4, 4, 2), (0, 1, 0, 1))
    """
    units = -(-numel // multiple)
    bounds = [min(multiple * (units * i // parts), numel) for i in range(parts + 1)]
    return tuple(b - a for a, b in itertools.pairwise(bounds))
