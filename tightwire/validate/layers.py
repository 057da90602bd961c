"""What the five layers are held to, part by part: measured, predicted, asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tightwire.architecture import PROGRAMS, synthesise
from tightwire.bench.collectives import CollectiveRow, CollectivesBench, measure
from tightwire.cluster import Cluster, Level
from tightwire.cluster.wiring import wiring_of
from tightwire.jobs import Job, policy, predict_jobs
from tightwire.lab import Topology
from tightwire.validate import megatron, transformers

NUM_BYTES = 16_000_000
LARGE_BYTES = 64_000_000
# One link at a quarter of the others' rate; two nodes joined by two lines, one at a quarter of the other.
UNEVEN = ("lines=1gbit+250mbit+1gbit+1gbit", "nodes=2x3,inside=1gbit,across=200mbit+50mbit")
RAILS = "rails=2x2,inside=1gbit,across=1gbit"
TWO_LEVELS = "nodes=2x2,inside=2gbit,across=100mbit"


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One number.

    Attributes:
        part: of the five layers.
        name: what it is.
        measured: None where it is a prediction alone.
        predicted: None where nothing predicts it.
        asked: the limit.
        unit: of all of them.
        at_least: whether the limit is the least; else it is the most.
    """

    part: str
    name: str
    measured: float | None = None
    predicted: float | None = None
    asked: float
    unit: str
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether what was measured, or else predicted, keeps the limit."""
        value = self.measured if self.measured is not None else self.predicted
        return value is not None and (value >= self.asked if self.at_least else value <= self.asked)

    def summary(self) -> dict[str, Any]:
        """Returns plain values."""
        names = ("part", "name", "measured", "predicted", "asked", "unit")
        return {name: vars(self)[name] for name in names} | {"holds": self.holds}


def parallelisation() -> Iterator[LayerRow]:
    """Published iteration times of transformers, held out."""
    part = "parallelisation"
    for table in (megatron.table(), transformers.table()):
        row = next(row for row in table.rows() if row["held_out"])
        yield LayerRow(
            part=part, name=f"{table.name}: mean error", measured=row["mape"], asked=0.1, unit="share"
        )
        if row["regret"] is not None:
            yield LayerRow(
                part=part,
                name=f"{table.name}: regret of the pick",
                measured=row["regret"],
                asked=0.03,
                unit="share",
            )


def collectives() -> Iterator[LayerRow]:
    """Programs made for the links: how long it takes to make them, how near they are, and what the lab measures."""
    part = "collectives"
    for nodes, workers, limit_s in ((8, 4, 2.0), (64, 8, 30.0)):
        cluster = Cluster.of_levels(
            Level(name="node", workers=workers, bandwidth_bytes_per_s=3e11),
            Level(name="cluster", workers=nodes * workers, bandwidth_bytes_per_s=2.5e10),
        )
        start_s = time.perf_counter()
        found = synthesise(wiring_of(cluster))
        took_s = time.perf_counter() - start_s
        name = f"{nodes} nodes of {workers}"
        yield LayerRow(part=part, name=f"{name}: made in", measured=took_s, asked=limit_s, unit="s")
        ratio = found.certificate.ratio
        yield LayerRow(part=part, name=f"{name}: over its bound", predicted=ratio, asked=1.08, unit="×")
    built_in = [
        name for name, recipe in PROGRAMS.items() if name not in ("synthesised", "allgather", "native")
    ]
    for text in UNEVEN:
        rows = _measured(text, NUM_BYTES, ("synthesised", *built_in))
        own = rows.pop("synthesised")
        best = min(rows.values(), key=lambda row: row.seconds)
        yield LayerRow(
            part=part,
            name=f"{text}: faster than {best.program}, the best built-in",
            measured=best.seconds / own.seconds,
            predicted=best.own_bound_s / own.own_bound_s,
            asked=1.3,
            unit="×",
            at_least=True,
        )
        yield LayerRow(
            part=part, name=f"{text}: over the bound", measured=own.ratio, predicted=1.0, asked=1.08, unit="×"
        )


def jobs() -> Iterator[LayerRow]:
    """Two equal jobs whose exchange is 0.45 of a step on one link, and an urgent one beside a large one: predicted."""
    part = "jobs"
    equal = [_job(name, 0.55, 0.45) for name in ("a", "b")]
    for name, limit in (("fair", 2.0), ("interleaved", 1.08)):
        found = predict_jobs(equal, policy(name))
        yield LayerRow(
            part=part,
            name=f"equal jobs, {name}: slowdown",
            predicted=found.worst_slowdown,
            asked=limit,
            unit="×",
        )
    pair = [_job("large", 0.2, 0.8), _job("urgent", 0.4, 0.1)]
    fair, crux = (predict_jobs(pair, policy(name)).jobs[1].slowdown for name in ("fair", "intensity"))
    yield LayerRow(part=part, name="urgent job, by intensity: slowdown", predicted=crux, asked=fair, unit="×")


def _job(name: str, compute_s: float, wire_s: float) -> Job:
    return Job(
        name=name,
        compute_s=compute_s,
        ready_s=compute_s,
        bytes_by_link={0: wire_s},
        rates=(1.0,),
        workers=(0, 1),
    )


def dimensions() -> Iterator[LayerRow]:
    """Links inside and between hosts together: parts that choose their order, and the ring on two levels."""
    part = "dimensions"
    rows = _measured(RAILS, LARGE_BYTES, ("hierarchical", "hierarchical,balanced=true"))
    plain, balanced = rows["hierarchical"], rows["hierarchical,balanced=true"]
    yield LayerRow(
        part=part,
        name=f"{RAILS}: balanced faster than hierarchical",
        measured=plain.seconds / balanced.seconds,
        predicted=plain.own_bound_s / balanced.own_bound_s,
        asked=1.15,
        unit="×",
        at_least=True,
    )
    for row in (plain, balanced):
        yield LayerRow(
            part=part, name=f"{row.program}: over its prediction", measured=row.own_ratio, asked=1.1, unit="×"
        )
    ring = _measured(TWO_LEVELS, NUM_BYTES, ("ring",))["ring"]
    yield LayerRow(
        part=part,
        name=f"{TWO_LEVELS}: ring",
        measured=ring.seconds,
        predicted=ring.own_bound_s,
        asked=2.18,
        unit="s",
    )


def _measured(text: str, num_bytes: int, programs: tuple[str, ...]) -> dict[str, CollectiveRow]:
    lab = Topology.parse(text)
    bench = CollectivesBench(
        workers=lab.workers,
        rate_bytes_per_s=lab.rate_bytes_per_s or 125e6,
        sizes=(num_bytes,),
        programs=programs,
        samples=5,
        topology=text,
    )
    rows, _ = measure(bench)
    return {row.program: row for row in rows}


PARTS: Mapping[str, Callable[[], Iterator[LayerRow]]] = {
    "parallelisation": parallelisation,
    "collectives": collectives,
    "jobs": jobs,
    "dimensions": dimensions,
}
