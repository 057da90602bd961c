"""One round of gossip as a program: messages go once along each edge, and are weighed on arrival."""

from __future__ import annotations

import functools
import math

from tightwire.architecture.allreduce.checker import Goal, ProgramTrace, check
from tightwire.architecture.allreduce.program import Program, Transfer
from tightwire.architecture.gossip.mixing import Mixing


@functools.lru_cache(maxsize=512)
def round_program(mixing: Mixing, name: str = "gossip") -> Program:
    """Returns the program of one round: α + d·mβ for at most d messages of m bytes from or to any worker.

    Chunk r is rank r's message; who receives it adds it with the transfer's weight.
    """
    transfers = (
        Transfer(0, sender, receiver, sender, "copy", weight=mixing.weight(receiver, sender))
        for sender, receiver in mixing.edges()
    )
    return Program(name, mixing.num_ranks, mixing.num_ranks, tuple(transfers), gathers=True)


def mixes(mixing: Mixing) -> Goal:
    """Returns what a round of `mixing` promises: everyone ends with the values that W names, at W's weights."""

    def ends(program: Program, rank: int, chunk: int) -> int:
        return 1 << chunk if rank == chunk or mixing.weight(rank, chunk) else 0

    return Goal(
        name="round of the declared mixing matrix",
        starts=lambda program, rank, chunk: rank == chunk,
        ends=ends,
        # Not a number equals nothing: no message is legal but those that W names.
        weighs=lambda program, t: (t.chunk == t.src and mixing.weight(t.dst, t.src)) or math.nan,
    )


def check_round(program: Program, mixing: Mixing) -> ProgramTrace:
    """Proves that `program` carries out one round of `mixing`, no more and no less.

    Raises:
        ProgramError: the first violation: a missing, doubled, undeclared or wrongly weighed message.
    """
    return check(program, mixes(mixing))
