"""All-reduces and all-gathers of messages around a ring, by doubling, and straight to everyone."""

from __future__ import annotations

from dataclasses import replace

from tightwire.architecture.allreduce.builders.boxes import Box
from tightwire.architecture.allreduce.program import Program, Transfer


def ring(n: int) -> Program:
    """Passes partial sums around a ring, then the sums: 2(n−1)α + 2(n−1)/n·Mβ + (n−1)/n·Mγ.

    Rank r completes the sum of chunk r.
    """
    return Program("ring", n, n, tuple(Box((n,)).all_reduce()), flows=True)


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
    return Program("recursive-doubling", n, 1, (*fold, *exchange, *unfold), flows=True)


def direct(n: int) -> Program:
    """Sends chunk c straight to rank c, which sends the sum to all: 2(n−1)α + 2(n−1)/n·Mβ + (n−1)/n·Mγ.

    Each phase's n−1 steps rotate the partner. They do not wait for one another, so that small messages cost 2α; the
    pieces of large ones go to each partner in turn, at the pace at which pieces arrive, so that no stream outruns the
    others: receivers hear all senders alike.
    """
    scatter = [
        Transfer(step, rank, (rank + 1 + step) % n, (rank + 1 + step) % n, "reduce")
        for step in range(n - 1)
        for rank in range(n)
    ]
    gather = [
        Transfer(n - 1 + step, rank, (rank + 1 + step) % n, rank, "copy")
        for step in range(n - 1)
        for rank in range(n)
    ]
    return Program("direct", n, n, (*scatter, *gather))


def allgather(n: int) -> Program:
    """Passes every rank's message of m bytes around a ring: (n−1)(α + mβ).

    One stream per line at a time: messages sent straight to all others cross on their way and took 1.2 to 1.4
    times as long on switched Ethernet.
    """
    return Program("allgather", n, n, tuple(Box((n,)).ring(0, 0, "copy")), gathers=True)


def native(n: int) -> Program:
    """Leaves the steps to the backend; counted as the ring that Gloo and NCCL run for large buffers."""
    return replace(ring(n), name="native", native=True)
