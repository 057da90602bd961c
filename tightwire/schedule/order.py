"""In which order pieces take a line, so that the next forward pass waits least.

This is the scheduling of one machine with heads and tails (Carlier, The one-machine sequencing problem, EJOR 1982):
a piece is there when backward has made it (its head), takes the line for a while, and then layers must still compute
before the next round begins (its tail). Jackson's rule, of what is there the longest tail first, is optimal if pieces
may be interrupted.

They may not, and Carlier's repairs of the order were here before: over 240 random models, wires and sizes of slices
they made the next round 0.4 % earlier in the mean (9.6 % at most, one bucket of VGG's size beside small ones), on 24
equal layers of 4 MiB 0.4 to 1.2 %, for up to a second of search. Jackson's rule itself gains 4 to 14 % over the order
of arrival.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tightwire.schedule.scheduler import Agenda, BucketFacts, Piece, Wire

# A piece that the order puts next must not be missing when the wire is free, so the rule is asked of a wire that is a
# little faster than the measured one: then something is always waiting.
HASTE = 0.9


def by_urgency(
    pieces: Sequence[Piece],
    buckets: Sequence[BucketFacts],
    wire: Wire | None,
    *,
    lanes: int = 1,
    credit_bytes: float = math.inf,
) -> Agenda:
    """Returns the pieces in the order in which the next forward waits least, by Jackson's rule.

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
    if wire is None or not any(ready_s):
        made = list(itertools.accumulate(bucket.num_bytes for bucket in buckets))
        instance = Instance([made[p.bucket] for p in pieces], [2.0 * p.num_bytes for p in pieces])
    else:
        instance = Instance(ready_s, [HASTE * wire.seconds(piece.num_bytes) for piece in pieces])
    order = jackson(pieces, buckets, instance)
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
