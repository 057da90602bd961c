"""Every program on an uncontended switch: the flow simulator against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tightwire import architecture as architectures
from tightwire.cluster.topologies import star
from tightwire.simulate.flows import program_seconds
from tightwire.validate.table import Point, Table

LATENCY_S, BYTES_PER_S = 1e-4, 1.25e8
RANKS = (2, 3, 4, 6, 7, 8, 12, 16)
NUM_BYTES = 2**24

# α, β and M as in the literature: n ranks, latency a, m = M / bandwidth; None where it has no form for n.
Form = Callable[[int, float, float], float | None]


def _power_of_two(n: int) -> bool:
    return n & (n - 1) == 0


FORMS: Mapping[str, Form] = {
    "ring": lambda n, a, m: 2 * (n - 1) * a + 2 * (n - 1) / n * m,
    "native": lambda n, a, m: 2 * (n - 1) * a + 2 * (n - 1) / n * m,
    "allgather": lambda n, a, m: (n - 1) * (a + m),
    "recursive-doubling": lambda n, a, m: math.log2(n) * (a + m) if _power_of_two(n) else None,
    "halving-doubling": lambda n, a, m: (
        2 * math.log2(n) * a + 2 * (n - 1) / n * m if _power_of_two(n) else None
    ),
}


def table() -> Table:
    """Compares every program, for several numbers of ranks, with its own α–β sum and with the literature's form."""
    points = [
        Point(name=f"{name} over {ranks}: {against}", group=name, measured=expected_s, predicted=seconds)
        for name in architectures.PROGRAMS
        for ranks in RANKS
        for against, expected_s, seconds in _compared(name, ranks)
    ]
    return Table(
        name="closed forms",
        points=tuple(points),
        target={"worst": 1e-9},
        note="Flow times on an uncontended switch against α–β; seconds.",
    )


def _compared(name: str, ranks: int) -> list[tuple[str, float, float]]:
    program = architectures.build(name, ranks)
    size = NUM_BYTES if program.gathers else NUM_BYTES // program.num_chunks
    chunks = [size] * program.num_chunks
    graph = star(ranks, bandwidth_bytes_per_s=BYTES_PER_S, latency_s=LATENCY_S)
    seconds = program_seconds(program, graph, chunks)
    compared = [("its transfers", program.seconds(chunks, LATENCY_S, BYTES_PER_S), seconds)]
    whole = size if program.gathers else size * program.num_chunks
    expected_s = FORMS[name](ranks, LATENCY_S, whole / BYTES_PER_S) if name in FORMS else None
    if expected_s is not None:
        compared.append(("the literature", expected_s, seconds))
    return compared
