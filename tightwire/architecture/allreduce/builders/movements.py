"""Collectives that are no all-reduce: what each rank begins and ends with is the goal of the same name."""

from __future__ import annotations

from tightwire.architecture.allreduce.builders.boxes import Box
from tightwire.architecture.allreduce.program import Program, Transfer


def reduce_scatter(n: int) -> Program:
    """Passes partial sums around a ring until rank r has the sum of chunk r: (n−1)(α + M/n·β)."""
    transfers = tuple(Box((n,)).ring(0, 0, "reduce"))
    return Program("reduce-scatter", n, n, transfers, goal="reduce-scatter", flows=True)


def all_gather(n: int) -> Program:
    """Passes rank r's chunk r around a ring until all have all: (n−1)(α + M/n·β)."""
    return Program("all-gather", n, n, tuple(Box((n,)).ring(0, 0, "copy")), goal="all-gather", flows=True)


def all_to_all(n: int) -> Program:
    """Sends block d of every rank straight to rank d, rotating the partner: (n−1)(α + M/n·β).

    Chunk s·n + d is what rank s has for rank d; M is what one rank has for all.
    """
    transfers = (
        Transfer(step, rank, dst, rank * n + dst, "copy")
        for step in range(n - 1)
        for rank in range(n)
        for dst in [(rank + 1 + step) % n]
    )
    return Program("all-to-all", n, n * n, tuple(transfers), goal="all-to-all")
