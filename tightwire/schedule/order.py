"""In which order pieces take a line, so that the next forward pass waits least.

This is the scheduling of one machine with heads and tails (Carlier, The one-machine sequencing problem, EJOR 1982):
a piece is there when backward has made it (its head), takes the line for a while, and then layers must still compute
before the next round begins (its tail). Jackson's rule, of what is there the longest tail first, is optimal if pieces
may be interrupted. They may not, and those that move side by side arrive together; so the order by that rule is tried
on the line, and repaired as Carlier branches: a piece that went before something more urgent, and made it late, is
given a later head, and the rule applied again.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tightwire.schedule.scheduler import Agenda, BucketFacts, Piece, Wire

# A piece that the order puts next must not be missing when the wire is free, so the rule is asked of wires that are
# a little faster than the measured one: then something is always waiting.
HASTE = (0.9, 0.8, 1.0)
FORWARD_OVER_BACKWARD = 0.5  # of any layer: a forward pass is one product of matrices, its backward two
MOST_TRIED = 10_000  # pieces, in all the orders that are tried: about 30 ms
NEAR_ENOUGH = 1.001  # times the bound that no order beats
CULPRITS = 4  # so many buckets are tried as the one to blame


def by_urgency(
    pieces: Sequence[Piece],
    buckets: Sequence[BucketFacts],
    wire: Wire | None,
    *,
    lanes: int = 1,
    credit_bytes: float = math.inf,
) -> Agenda:
    """Returns the pieces in the order in which the next forward waits least, as far as tried.

    Most urgent is the bucket that became ready last: it belongs to the layer that the next forward needs first.
    Unmeasured, backward is taken to produce bytes evenly, twice as fast as they move, and Jackson's rule stands.

    Args:
        pieces: of all buckets, each to its mean.
        buckets: when they are ready.
        wire: what averaging costs; None when not measured.
        lanes: pieces that move side by side.
        credit_bytes: that may be under way.
    """
    ready_s = [buckets[piece.bucket].ready_s for piece in pieces]
    if wire is not None and wire.is_guess and any(ready_s):
        order: Sequence[int] = jackson(
            pieces, buckets, Instance(ready_s, [wire.seconds(piece.num_bytes) for piece in pieces])
        )
    elif wire is None or not any(ready_s):
        made = list(itertools.accumulate(bucket.num_bytes for bucket in buckets))
        assumed = Instance([made[p.bucket] for p in pieces], [2.0 * p.num_bytes for p in pieces])
        order = jackson(pieces, buckets, assumed)
    else:
        line = Line(pieces, buckets, wire, lanes, credit_bytes)
        seconds = [wire.seconds(piece.num_bytes) for piece in pieces]
        order = _best(line, [Instance(ready_s, [haste * s for s in seconds]) for haste in HASTE]).order
    return Agenda(pieces=tuple(pieces[i] for i in order), lanes=lanes, credit_bytes=credit_bytes)


@dataclass(frozen=True)
class Instance:
    """A problem that Jackson's rule is asked.

    Attributes:
        heads_s: when each piece is there.
        seconds: that each piece takes.
    """

    heads_s: Sequence[float]
    seconds: Sequence[float]


def jackson(pieces: Sequence[Piece], buckets: Sequence[BucketFacts], instance: Instance) -> list[int]:
    """Returns the numbers of pieces in the order in which a lone wire takes them: the most urgent that is there."""
    heads_s = instance.heads_s
    coming = sorted(range(len(pieces)), key=lambda i: (heads_s[i], pieces[i].bucket, pieces[i].start))
    rank = {b: r for r, b in enumerate(sorted(range(len(buckets)), key=lambda b: (-buckets[b].ready_s, -b)))}
    waiting: list[tuple[int, int, int]] = []
    order: list[int] = []
    now_s, position = 0.0, 0
    while len(order) < len(pieces):
        if not waiting:
            now_s = max(now_s, heads_s[coming[position]])
        while position < len(coming) and heads_s[coming[position]] <= now_s:
            piece = pieces[coming[position]]
            heapq.heappush(waiting, (rank[piece.bucket], piece.start, coming[position]))
            position += 1
        index = heapq.heappop(waiting)[2]
        order.append(index)
        now_s += instance.seconds[index]
    return order


@dataclass(frozen=True)
class Outcome:
    """What an order comes to on a line.

    Attributes:
        instance: for which Jackson's rule made it.
        order: the pieces' numbers.
        late_s: when the next round could begin, from the first gradient on, less what no order changes.
        decides: the position of the piece by which it is so late.
    """

    instance: Instance
    order: Sequence[int]
    late_s: float
    decides: int


def _best(line: Line, instances: Sequence[Instance]) -> Outcome:
    """Returns the best outcome of these and of their repairs, the most promising first, as far as tried."""
    outcomes = [line.run(instance) for instance in instances]
    numbers = itertools.count()
    unrepaired = [(outcome.late_s, next(numbers), outcome) for outcome in outcomes]
    heapq.heapify(unrepaired)
    for _ in range(MOST_TRIED // (CULPRITS * len(line.pieces))):
        if not unrepaired or unrepaired[0][0] <= NEAR_ENOUGH * line.bound_s:
            break
        for instance in line.repairs(heapq.heappop(unrepaired)[2]):
            outcomes.append(line.run(instance))
            heapq.heappush(unrepaired, (outcomes[-1].late_s, next(numbers), outcomes[-1]))
    return min(outcomes, key=lambda outcome: outcome.late_s)


class Line:
    """A line that pieces take by lanes, in virtual time.

    Those under way share it evenly, as if each had so many seconds of work to do on it.

    Attributes:
        pieces: that take it.
        bound_s: no order is less late.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        buckets: Sequence[BucketFacts],
        wire: Wire,
        lanes: int,
        credit_bytes: float,
    ) -> None:
        self.pieces = pieces
        self._buckets = buckets
        self._bytes = [piece.num_bytes for piece in pieces]
        self._ready_s = [buckets[piece.bucket].ready_s for piece in pieces]
        self._seconds = [wire.seconds(piece.num_bytes) for piece in pieces]
        self._lanes, self._credit_bytes = lanes, credit_bytes
        tails_s = [FORWARD_OVER_BACKWARD * ready_s for ready_s in self._ready_s]
        self.bound_s = max(
            min(self._ready_s) + sum(self._seconds) + min(tails_s),
            max(map(sum, zip(self._ready_s, self._seconds, tails_s, strict=True))),
        )

    def run(self, instance: Instance) -> Outcome:
        """Orders the pieces by Jackson's rule, and sends them as `Agreed` lets them go."""
        order = jackson(self.pieces, self._buckets, instance)
        late_s = self.late_s(order)
        decides = max(range(len(order)), key=late_s.__getitem__)
        return Outcome(instance, order, late_s[decides], decides)

    def repairs(self, outcome: Outcome) -> list[Instance]:
        """Returns instances in each of which one bucket keeps back what made something more urgent late."""
        order, decides, instance = outcome.order, outcome.decides, outcome.instance
        urgent_s = self._ready_s[order[decides]]
        last_of = {
            self.pieces[order[i]].bucket: i for i in range(decides) if self._ready_s[order[i]] < urgent_s
        }
        instances = []
        for culprit in sorted(last_of.values())[-CULPRITS:]:
            passing = order[culprit + 1 : decides + 1]
            head_s = min(instance.heads_s[i] for i in passing) + sum(instance.seconds[i] for i in passing)
            heads_s = list(instance.heads_s)
            for i in order[culprit:]:  # one kept back must not be replaced by another of its bucket
                if self.pieces[i].bucket == self.pieces[order[culprit]].bucket:
                    heads_s[i] = max(heads_s[i], head_s)
            instances.append(Instance(heads_s, instance.seconds))
        return instances

    def late_s(self, order: Sequence[int]) -> list[float]:
        """Returns when the next round could begin if all hung on a piece, by its position in the order.

        After it, the forward passes of its layer and of all behind: of those that were ready before it.
        """
        arrived_s = self.arrivals_s(order)
        return [a + FORWARD_OVER_BACKWARD * self._ready_s[i] for a, i in zip(arrived_s, order, strict=True)]

    def arrivals_s(self, order: Sequence[int]) -> list[float]:
        """Returns when each piece has arrived, by its position in the order."""
        arrived_s = [0.0] * len(order)
        left_s: dict[int, float] = {}  # of what is under way, by position
        busy = [False] * self._lanes
        now_s, position, under_way = 0.0, 0, 0
        while position < len(order) or left_s:
            wait_s = math.inf
            while position < len(order) and not busy[position % self._lanes]:
                piece = order[position]
                if left_s and under_way + self._bytes[piece] > self._credit_bytes:
                    break
                if self._ready_s[piece] > now_s:
                    wait_s = self._ready_s[piece] - now_s
                    break
                left_s[position] = self._seconds[piece]
                busy[position % self._lanes] = True
                under_way += self._bytes[piece]
                position += 1
            shared = max(1, len(left_s))
            pass_s = min(wait_s, shared * min(left_s.values(), default=math.inf))
            now_s += pass_s
            for i in [*left_s]:
                left_s[i] -= pass_s / shared
                if left_s[i] <= 1e-9 * self._seconds[order[i]]:
                    del left_s[i]
                    arrived_s[i] = now_s
                    busy[i % self._lanes] = False
                    under_way -= self._bytes[order[i]]
        return arrived_s
