"""The shape of a program: how often its busiest worker does what, which is all that its cost needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tightwire import architecture as architectures
from tightwire.architecture import Program

# Above this many workers, programs are costed by closed forms: their transfers grow with the square of it.
MAX_BUILT = 64


@dataclass(frozen=True, kw_only=True)
class ProgramCounts:
    """What the busiest worker does in one run of a program; counts are of chunks.

    Attributes:
        messages: sent, each to one worker in one step, whatever the chunks in it.
        steps: messages that wait for one another, in the longest row of them.
        chunks: into how many chunks a reducing program splits its buffer; 1 for a gathering one, whose chunks
            are whole messages.
        sends: chunks sent.
        encodes: chunks encoded.
        decodes: chunks decoded.
    """

    messages: int
    steps: int
    chunks: int
    sends: int
    encodes: int
    decodes: int


@lru_cache(maxsize=256)
def counts_of(program: str, workers: int) -> ProgramCounts:
    """Returns the shape of `program` among `workers`, without building it where a closed form is known.

    Raises:
        ProgramError: no such program.
    """
    if workers == 1:
        return ProgramCounts(messages=0, steps=0, chunks=1, sends=0, encodes=0, decodes=0)
    if workers > MAX_BUILT and program in CLOSED_FORMS:
        return CLOSED_FORMS[program](workers)
    return count(architectures.build(program, workers))


def count(program: Program) -> ProgramCounts:
    """Returns the shape of a program by counting its transfers."""
    rank = busiest_rank(program)
    sends, receives, steps = program.sends(rank), program.receives(rank), depth(program)
    messages = len({(t.step, t.dst) for t in sends})
    if program.gathers:  # one's own message is decoded as well
        return ProgramCounts(
            messages=messages,
            steps=steps,
            chunks=1,
            sends=len(sends),
            encodes=1,
            decodes=program.num_ranks,
        )
    if program.native:  # the backend sums messages without looking into them
        chunks = program.num_chunks
        return ProgramCounts(
            messages=messages, steps=steps, chunks=chunks, sends=len(sends), encodes=chunks, decodes=chunks
        )
    partial = sum(t.op == "reduce" for t in sends)
    final = len({t.chunk for t in sends if t.op == "copy"} - {t.chunk for t in receives if t.op == "copy"})
    return ProgramCounts(
        messages=messages,
        steps=steps,
        chunks=program.num_chunks,
        sends=len(sends),
        encodes=partial + final,
        decodes=len(receives),
    )


def depth(program: Program) -> int:
    """Returns how many messages of a program wait for one another in a row, at most."""
    arrived: dict[tuple[int, int], int] = {}  # (rank, chunk): the length of the row that brought its value
    for _, transfers in program.steps():
        rows = [arrived.get((t.src, t.chunk), 0) + 1 for t in transfers]
        for t, row in zip(transfers, rows, strict=True):
            arrived[t.dst, t.chunk] = max(row, arrived.get((t.dst, t.chunk), 0))
    return max(arrived.values(), default=0)


def busiest_rank(program: Program) -> int:
    """Returns the rank that sends the most chunks, the first of several."""
    return max(range(program.num_ranks), key=lambda rank: len(program.sends(rank)))


def _ring(n: int) -> ProgramCounts:
    hops = 2 * (n - 1)
    return ProgramCounts(messages=hops, steps=hops, chunks=n, sends=hops, encodes=n, decodes=hops)


def _native(n: int) -> ProgramCounts:
    hops = 2 * (n - 1)
    return ProgramCounts(messages=hops, steps=hops, chunks=n, sends=hops, encodes=n, decodes=n)


def _allgather(n: int) -> ProgramCounts:
    return ProgramCounts(messages=n - 1, steps=n - 1, chunks=1, sends=n - 1, encodes=1, decodes=n)


def _recursive_doubling(n: int) -> ProgramCounts:
    doublings = n.bit_length() - 1
    folded = n - (1 << doublings)  # ranks that hand in their contribution first and receive the sum last
    each = doublings + (folded > 0)
    steps = each + (2 * folded > 1 << doublings)
    return ProgramCounts(messages=each, steps=steps, chunks=1, sends=each, encodes=each, decodes=each)


CLOSED_FORMS: dict[str, Callable[[int], ProgramCounts]] = {
    "ring": _ring,
    "native": _native,
    "allgather": _allgather,
    "recursive-doubling": _recursive_doubling,
}
