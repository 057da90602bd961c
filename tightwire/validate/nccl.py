"""NCCL's all-reduce: sizes between those measured, and eight devices of a node foretold from two and four."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tightwire.cluster.imports import measured_all_reduce
from tightwire.cluster.pieces import SCATTER
from tightwire.simulate.interval import COVERAGE
from tightwire.validate import published
from tightwire.validate.fitting import Prior, fit
from tightwire.validate.table import Point, Table, interval

MIB = 2**20
# NVLinks between the eight V100 of a DGX-1 (NVIDIA DGX-1 with Tesla V100 system architecture, figure 4).
DGX1_LINKS = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 1,
    (2, 6): 2, (3, 7): 2, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NcclCase:
    """One measured all-reduce."""

    table: str
    gpu: str
    gpus: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node's all-reduce for any number of its devices.

    Attributes:
        alpha_s: of a call.
        step_s: of each of a ring's 2(n − 1) steps.
        ring_bytes_per_s: of one ring.
        local_s_per_byte: of a device's own work, per byte of the buffer.
    """

    alpha_s: float
    step_s: float
    ring_bytes_per_s: float
    local_s_per_byte: float


def rings(gpu: str, gpus: int) -> int:
    """Returns how many rings a group can have at once: its links per device; one through a switch.

    >>> [rings("v100", n) for n in (2, 4, 8)], rings("a100", 8)
    ([1, 4, 6], 1)
    """
    if gpu != "v100":
        return 1
    return sum(count for (a, b), count in DGX1_LINKS.items() if 0 in (a, b) and max(a, b) < gpus)


def sizes_table() -> Table:
    """Fits every group on every other size, as an import of nccl-tests does, and predicts the sizes between."""
    return Table(
        name="NCCL sizes",
        points=tuple(point for point, num_bytes in _between_sizes() if num_bytes >= MIB),
        target={"mape": 0.05, "coverage": COVERAGE},
        note="From 1 MiB on: lines of α + β · size per table, as `cluster import nccl-tests` fits them; seconds.",
    )


def all_sizes_table() -> Table:
    """Does the same for all sizes, from 8 bytes on."""
    return Table(
        name="NCCL all sizes",
        points=tuple(point for point, _ in _between_sizes()),
        target={"mape": 0.12, "coverage": COVERAGE},
        note="From 8 bytes on, where protocols switch; the rest as in NCCL sizes; seconds.",
    )


def _between_sizes() -> Iterator[tuple[Point, int]]:
    """Yields every size of every table, the odd ones predicted from the even ones."""
    for group in _groups():
        ranks = group[0].gpus
        cluster = measured_all_reduce([(case.num_bytes, case.seconds) for case in group[::2]], ranks)
        fit = cluster.fits[0]
        # What the fit leaves open, and what times scatter by where two lines meet in as many constants as points.
        deviation = math.hypot(fit.residual, SCATTER)
        for place, case in enumerate(group):
            predicted = fit.seconds(2 * (ranks - 1) / ranks * case.num_bytes)
            point = Point(
                name=f"{case.table}, {case.num_bytes} bytes",
                group=case.table,
                measured=case.seconds,
                predicted=predicted,
                held_out=place % 2 == 1,
                stated=interval(predicted, deviation),
            )
            yield point, case.num_bytes


def scaling_table() -> Table:
    """Fits every kind of node on two and four devices, and predicts eight."""
    points: list[Point] = []
    for gpu in dict.fromkeys(case.gpu for case in cases()):
        of_gpu = [case for case in cases() if case.gpu == gpu]
        fitted = fit(
            Node,
            {
                "alpha_s": Prior(value=3e-5, spread=1.0),
                "step_s": Prior(value=3e-6, spread=0.7),
                "ring_bytes_per_s": Prior(value=5e10, spread=3.0),
                "local_s_per_byte": Prior(value=1e-12, spread=1.0),
            },
            _in_node,
            [(case, case.seconds) for case in of_gpu if case.gpus < 8],
        )
        eight = frozenset(i for i, case in enumerate(of_gpu) if case.gpus == 8)
        points += _points(of_gpu, partial(_in_node, fitted), eight.__contains__)
    return Table(
        name="NCCL scaling",
        points=tuple(points),
        target={"mape": 0.10},
        note="Eight devices foretold from two and four: four constants per kind of node, and its links; seconds.",
    )


def cases() -> Iterator[NcclCase]:
    """Yields what was measured inside nodes, sizes from 1 MiB on."""
    for row in published.read("nccl_allreduce_times.csv"):
        yield NcclCase(
            table=f"{row['gpus']} {row['gpu']}",
            gpu=row["gpu"],
            gpus=int(row["gpus"]),
            num_bytes=int(row["bytes"]),
            seconds=float(row["time_us"]) / 1e6,
        )


def public_cases() -> Iterator[NcclCase]:
    """Yields what public logs of nccl-tests and rccl-tests show, inside nodes and across."""
    for row in published.read("nccl_tests_all_reduce.csv"):
        yield NcclCase(
            table=row["table"],
            gpu=row["device"],
            gpus=int(row["ranks"]),
            num_bytes=int(row["bytes"]),
            seconds=float(row["time_us"]) / 1e6,
        )


def _groups() -> list[list[NcclCase]]:
    groups: dict[str, list[NcclCase]] = {}
    for case in (*cases(), *public_cases()):
        groups.setdefault(case.table, []).append(case)
    return list(groups.values())


def _in_node(node: Node, case: NcclCase) -> float:
    n = case.gpus
    wire_s_per_byte = 2 * (n - 1) / n / (rings(case.gpu, n) * node.ring_bytes_per_s)
    steps_s = 2 * (n - 1) * node.step_s
    return node.alpha_s + steps_s + case.num_bytes * (wire_s_per_byte + node.local_s_per_byte)


def _points(
    group: Sequence[NcclCase], predict: Callable[[NcclCase], float], is_held_out: Callable[[int], bool]
) -> list[Point]:
    return [
        Point(
            name=f"{case.gpus} {case.gpu}, {case.num_bytes} bytes",
            group=f"{case.gpus} {case.gpu}",
            measured=case.seconds,
            predicted=predict(case),
            held_out=is_held_out(i),
        )
        for i, case in enumerate(group)
    ]
