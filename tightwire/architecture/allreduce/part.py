"""One rank's part of a program: what it receives, piece by piece, and what each arrival lets it send."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from tightwire.architecture.allreduce.checker import ProgramTrace, check
from tightwire.architecture.allreduce.program import Op, Program, Transfer
from tightwire.architecture.allreduce.traffic import Pieces
from tightwire.errors import ProgramError

TAG_BITS = 16  # of the 31, for the messages of one runner between two ranks
MAX_TAG = 1 << (31 - TAG_BITS)

# How many pieces of earlier turns may still be on their way to a rank when it sends one, where pieces do not flow.
# Measured with direct over eight ranks at 1 Gb/s: where sends do not keep pace with arrivals, some streams outrun
# others, and receivers hear too many senders, then too few: 16 MB took 11 % more time.
WINDOW = 14

Place = Literal["work", "mean", "message"]
# By which the pieces of a part are ordered, alike on all ranks.
Turn = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Encode:
    """A value must become a message.

    Attributes:
        value: the symbol of the value; ranks that hold equal values draw equal random numbers.
        place: where the value lies.
        makers: the ranks that encode equal values, and share the loss; see `share_of_loss`.
        complete: whether the value is the mean, and no partial sum.
    """

    value: int
    place: Place
    makers: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Send:
    """A piece that leaves; `encode` is None where its message exists already.

    Attributes:
        dst: where to.
        tag: of the message.
        piece: which.
        encode: how it becomes a message.
        group: the program's step, and which of the chunk's pieces it is.
    """

    dst: int
    tag: int
    piece: int
    encode: Encode | None
    group: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Receive:
    """A piece that arrives.

    Attributes:
        src: whence.
        tag: of the message.
        piece: which.
        op: what becomes of it.
        place: where this rank's own value lies when it arrives.
        own_first: of two messages to add, own comes first: the same order on both sides, so that both get
            the same bits whatever the rounding.
        completes: the sum is complete then, to be divided by n.
        encode: how the complete value is encoded, where it will be spread.
        then: what may leave once it is in.
        group: the program's step, and which of the chunk's pieces it is.
    """

    src: int
    tag: int
    piece: int
    op: Op
    place: Place
    own_first: bool = False
    completes: bool = False
    encode: Encode | None = None
    then: list[Send] = field(default_factory=list)
    group: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Part:
    """What one rank does, in an order in which no rank ever waits for a later one.

    Sends leave in the order of their turns, also where a later one could leave before: a line then carries the streams
    that the program means it to, and no stream outruns the others.

    Attributes:
        first: what leaves before anything arrives.
        receives: in the order in which they are taken in.
    """

    first: tuple[Send, ...]
    receives: tuple[Receive, ...]

    def groups(self) -> list[tuple[list[Send], list[Receive]]]:
        """Returns what this rank does step by step, and within a step piece by piece: sends, and receives beside them.

        All ranks have these groups in one order, and what one sends in a group another receives in the same: whoever
        does them one after another, each as a whole, never waits for ever.
        """
        found: dict[tuple[int, int], tuple[list[Send], list[Receive]]] = {}
        for send in (*self.first, *(send for receive in self.receives for send in receive.then)):
            found.setdefault(send.group, ([], []))[0].append(send)
        for receive in self.receives:
            found.setdefault(receive.group, ([], []))[1].append(receive)
        return [found[group] for group in sorted(found)]


@lru_cache(maxsize=64)
def trace_of(program: Program) -> ProgramTrace:
    """Returns what a run of the program on symbols sees; checked once."""
    return check(program)


@lru_cache(maxsize=64)
def phases(program: Program) -> dict[int, int]:
    """Returns the phase of each step: successive steps that need not wait for one another are one phase.

    All of a phase is under way together, piece by piece over all peers: streams that last are fairer to each other,
    and faster, than streams that start and stop.
    """
    found: dict[int, int] = {}
    arrived: set[tuple[int, int]] = set()
    for step, transfers in program.steps():
        waits = any((t.src, t.chunk) in arrived for t in transfers)
        found[step] = max(found.values(), default=0) + waits
        if waits:
            arrived.clear()
        arrived.update((t.dst, t.chunk) for t in transfers)
    return found


@lru_cache(maxsize=64)
def depths(program: Program) -> tuple[int, ...]:
    """Returns how many transfers each one must wait for in a row, as its place in a pipeline.

    Where a rank talks with several others in successive steps that need not wait for one another, as with the children
    of a tree, they are equally deep: a piece then goes on as soon as it can, and not so many steps later. Never less
    than what its receiver took in or gave out of the chunk before, so that values change in the order of steps.
    """
    found: list[int] = []
    taken: dict[tuple[int, int], int] = {}
    given: dict[tuple[int, int], int] = {}
    for _, transfers in program.steps():
        here = [taken.get((t.src, t.chunk), -1) + 1 for t in transfers]
        while True:
            sends = dict(given)
            for t, depth in zip(transfers, here, strict=True):
                sends[t.src, t.chunk] = max(depth, sends.get((t.src, t.chunk), 0))
            after = [
                max(depth, taken.get((t.dst, t.chunk), 0), sends.get((t.dst, t.chunk), 0))
                for t, depth in zip(transfers, here, strict=True)
            ]
            if after == here:
                break
            here = after
        given = sends
        for t, depth in zip(transfers, here, strict=True):
            taken[t.dst, t.chunk] = max(depth, taken.get((t.dst, t.chunk), 0))
        found += here
    return tuple(found)


def part_of(program: Program, rank: int, pieces: Pieces, tag: int) -> Part:
    """Works out what `rank` does.

    Args:
        program: checked here.
        rank: whose part.
        pieces: of the program's chunks, the same on all ranks.
        tag: tells runners that are under way at the same time apart.

    Raises:
        ProgramError: a wrong program; a tag or a number of pieces that message tags have no room for.
    """
    if not 0 <= tag < MAX_TAG:
        raise ProgramError(
            f"tag {tag} is outside 0…{MAX_TAG - 1}: so many runners at most share one transport."
        )
    return _Lowering(program, rank, pieces, tag << TAG_BITS).part()


class _Lowering:
    """Follows one rank through the trace of its program."""

    def __init__(self, program: Program, rank: int, pieces: Pieces, tag_base: int) -> None:
        self.program, self.rank, self.pieces, self.tag_base = program, rank, pieces, tag_base
        self.trace = trace_of(program)
        self.phases = phases(program)
        self.depths = depths(program) if program.flows else ()
        self.places: dict[int, Place] = {}
        self.tags: dict[tuple[int, int], int] = {}
        self.sends: list[tuple[Turn, Send, Receive | None]] = []
        self.receives: list[tuple[Turn, Receive]] = []
        self.latest: dict[int, Receive] = {}

    def part(self) -> Part:
        index = 0
        for _, transfers in self.program.steps():
            numbered = list(enumerate(transfers, start=index))
            index += len(transfers)
            for i, t in numbered:
                if t.src == self.rank:
                    self._send(i, t)
            for i, t in numbered:
                if t.dst == self.rank:
                    self._receive(i, t)
        return self._ordered()

    def _ordered(self) -> Part:
        """Hangs every send on the arrival that lets it leave: its own, or one that an earlier send waits for."""
        receives = [receive for _, receive in sorted(self.receives, key=lambda entry: entry[0])]
        places = {id(receive): place for place, receive in enumerate(receives, start=1)}
        first: list[Send] = []
        after = 0
        turns = sorted(turn for turn, _ in self.receives)
        for turn, send, enabler in sorted(self.sends, key=lambda entry: entry[0]):
            after = max(after, places[id(enabler)] if enabler else 0)
            if not self.program.flows:
                after = max(after, bisect.bisect_left(turns, turn) - WINDOW)
            (receives[after - 1].then if after else first).append(send)
        return Part(tuple(first), tuple(receives))

    def _turn(self, i: int, step: int, position: int) -> Turn:
        """When a piece moves: piece by piece over all chunks of a phase; where pieces flow, by how deep it is."""
        if self.program.flows:
            return self.depths[i] + position, step, 0
        return self.phases[step], position, step

    def _send(self, i: int, t: Transfer) -> None:
        value = self.trace.sent[i]
        encode = None
        if not self.program.gathers and not self.trace.values.is_carried(value):
            if self.places.get(t.chunk) != "message":
                encode = self._encode(value, t.chunk)
            self.places[t.chunk] = "message"
        for position, (tag, piece) in enumerate(self._tagged(t)):
            send = Send(t.dst, tag, piece, encode, (t.step, position))
            self.sends.append((self._turn(i, t.step, position), send, self.latest.get(piece)))

    def _receive(self, i: int, t: Transfer) -> None:
        values, after = self.trace.values, self.trace.after[i]
        if (
            t.op == "copy"
            and not self.program.gathers
            and self.program.goal == "all-reduce"
            and values.masks[after] + 1 != 1 << self.program.num_ranks
        ):
            raise ProgramError(
                f"{self.program.name} copies an unfinished sum at step {t.step}: only finished ones can be."
            )
        place: Place = self.places.get(t.chunk, "work")
        encode, own_first = None, False
        if t.op == "reduce":
            held = self.trace.before[i]
            assert held is not None
            arriving = values.carried(self.trace.sent[i])
            own_first = _lowest(values.masks[held]) < _lowest(values.masks[arriving])
            self.places[t.chunk] = "mean" if place == "message" else place
            if self.trace.completes[i] and t.chunk in self.trace.spread:
                encode = self._encode(values.sum(held, arriving), t.chunk)
        if t.op == "copy" or encode:
            self.places[t.chunk] = "message"
        for position, (tag, piece) in enumerate(self._tagged(t)):
            receive = Receive(
                t.src,
                tag,
                piece,
                t.op,
                place,
                own_first,
                self.trace.completes[i],
                encode,
                [],
                (t.step, position),
            )
            self.latest[piece] = receive
            self.receives.append((self._turn(i, t.step, position), receive))

    def _encode(self, value: int, chunk: int) -> Encode:
        complete = self.trace.values.masks[value] + 1 == 1 << self.program.num_ranks
        return Encode(value, self.places.get(chunk, "work"), len(self.trace.encoders[value]), complete)

    def _tagged(self, t: Transfer) -> Iterator[tuple[int, int]]:
        """Numbers the messages between two ranks, alike on both sides."""
        start = self.tags.get((t.src, t.dst), 0)
        of_chunk = self.pieces.of_chunk[t.chunk]
        if start + len(of_chunk) > 1 << TAG_BITS:
            raise ProgramError(
                f"{self.program.name} needs more than {1 << TAG_BITS} messages from rank {t.src} to rank "
                f"{t.dst}: raise piece_bytes."
            )
        self.tags[t.src, t.dst] = start + len(of_chunk)
        return ((self.tag_base + start + i, piece) for i, piece in enumerate(of_chunk))


def _lowest(mask: int) -> int:
    return mask & -mask
