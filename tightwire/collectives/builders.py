"""The programs: for N ranks, one small function each. A new one is a function and a line in `PROGRAMS`.

Costs are for one buffer of M bytes over n ranks: α is the latency of a message, β the seconds per byte of a
line, γ the seconds per byte of a reduction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from tightwire.collectives.program import Program, Transfer
from tightwire.errors import ProgramError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A program for any number of ranks, and where it comes from."""

    build: Callable[[int], Program]
    title: str
    paper: str


def ring(n: int) -> Program:
    """Passes partial sums around a ring, then the sums: 2(n−1)α + 2(n−1)/n·Mβ + (n−1)/n·Mγ.

    Rank r completes the sum of chunk r.
    """
    scatter = [
        Transfer(step, rank, (rank + 1) % n, (rank - 1 - step) % n, "reduce")
        for step in range(n - 1)
        for rank in range(n)
    ]
    return Program("ring", n, n, (*scatter, *_pass_on(n, first_step=n - 1)))


def recursive_doubling(n: int) -> Program:
    """Exchanges whole sums with partners at distance 1, 2, 4, …: log₂n·(α + Mβ + Mγ).

    Where n is no power of two, the ranks beyond the largest one below n hand their contribution to a partner
    first and receive the sum last: 2(α + Mβ) more.
    """
    core = 1 << (n.bit_length() - 1)
    last = core.bit_length()
    fold = [Transfer(0, rank, rank - core, 0, "reduce") for rank in range(core, n)]
    exchange = [
        Transfer(step, rank, rank ^ (1 << step - 1), 0, "reduce")
        for step in range(1, last)
        for rank in range(core)
    ]
    unfold = [Transfer(last, rank - core, rank, 0, "copy") for rank in range(core, n)]
    return Program("recursive-doubling", n, 1, (*fold, *exchange, *unfold))


def allgather(n: int) -> Program:
    """Passes every rank's message of m bytes around a ring: (n−1)(α + mβ).

    One stream per line at a time: messages sent straight to all others cross on their way and took 1.2 to 1.4
    times as long on switched Ethernet.
    """
    return Program("allgather", n, n, tuple(_pass_on(n, first_step=0)), gathers=True)


def native(n: int) -> Program:
    """Leaves the steps to the backend; counted as the ring that Gloo and NCCL run for large buffers."""
    return replace(ring(n), name="native", native=True)


def _pass_on(n: int, first_step: int) -> list[Transfer]:
    """Copies chunk r, which rank r has, once around the ring."""
    return [
        Transfer(first_step + step, rank, (rank + 1) % n, (rank - step) % n, "copy")
        for step in range(n - 1)
        for rank in range(n)
    ]


PROGRAMS: dict[str, Recipe] = {
    "ring": Recipe(
        build=ring,
        title="Ring all-reduce",
        paper="Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations",
    ),
    "recursive-doubling": Recipe(
        build=recursive_doubling,
        title="Recursive doubling",
        paper="Thakur, Rabenseifner and Gropp 2005, Optimization of collective communication in MPICH",
    ),
    "allgather": Recipe(
        build=allgather,
        title="All-gather of messages, each decoded by everyone",
        paper="Thakur, Rabenseifner and Gropp 2005, Optimization of collective communication in MPICH",
    ),
    "native": Recipe(
        build=native,
        title="The backend's own all-reduce",
        paper="PyTorch torch.distributed: Gloo, NCCL or MPI",
    ),
}


@lru_cache(maxsize=128)
def build(name: str, num_ranks: int) -> Program:
    """Returns the program `name` for `num_ranks` ranks.

    Raises:
        ProgramError: an unknown name, or no ranks.
    """
    if name not in PROGRAMS:
        raise ProgramError(f"{name!r} is no known program; known: {', '.join(sorted(PROGRAMS))}.")
    if num_ranks < 1:
        raise ProgramError(f"{name} over {num_ranks} ranks: a program needs at least 1.")
    return PROGRAMS[name].build(num_ranks)
