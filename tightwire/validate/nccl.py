"""NCCL's all-reduce inside a node: two constants per group, and eight devices foretold from two and four."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tightwire.validate import published
from tightwire.validate.fitting import Prior, fit
from tightwire.validate.table import Point, Table

# NVLinks between the eight V100 of a DGX-1 (NVIDIA DGX-1 with Tesla V100 system architecture, figure 4).
DGX1_LINKS = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 1,
    (2, 6): 2, (3, 7): 2, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measured all-reduce."""

    gpu: str
    gpus: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """α and β of one group of devices."""

    alpha_s: float
    beta_s_per_byte: float


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
    """Fits every group on every other size, and predicts the sizes between."""
    points: list[Point] = []
    for group in _groups():
        fitted = fit(
            Line,
            {"alpha_s": Prior(value=5e-5, spread=1.0), "beta_s_per_byte": Prior(value=1e-11, spread=3.0)},
            _on_line,
            [(case, case.seconds) for case in group[::2]],
        )
        points += _points(group, partial(_on_line, fitted), lambda i: i % 2 == 1)
    return Table(
        name="NCCL sizes",
        points=tuple(points),
        target={"mape": 0.05},
        note="α and β per group of devices, fitted on half of the sizes; seconds.",
    )


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


def cases() -> Iterator[Case]:
    """Yields what was measured."""
    for row in published.read("nccl_allreduce_times.csv"):
        yield Case(
            gpu=row["gpu"],
            gpus=int(row["gpus"]),
            num_bytes=int(row["bytes"]),
            seconds=float(row["time_us"]) / 1e6,
        )


def _groups() -> list[list[Case]]:
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in cases():
        groups.setdefault((case.gpu, case.gpus), []).append(case)
    return list(groups.values())


def _on_line(line: Line, case: Case) -> float:
    return line.alpha_s + line.beta_s_per_byte * case.num_bytes


def _in_node(node: Node, case: Case) -> float:
    n = case.gpus
    wire_s_per_byte = 2 * (n - 1) / n / (rings(case.gpu, n) * node.ring_bytes_per_s)
    steps_s = 2 * (n - 1) * node.step_s
    return node.alpha_s + steps_s + case.num_bytes * (wire_s_per_byte + node.local_s_per_byte)


def _points(
    group: Sequence[Case], predict: Callable[[Case], float], is_held_out: Callable[[int], bool]
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
