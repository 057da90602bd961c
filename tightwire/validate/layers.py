"""What the five layers are held to, part by part: measured, predicted, asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tightwire.architecture import PROGRAMS, AllReduce, synthesise
from tightwire.bench.collectives import CollectiveRow, CollectivesBench, measure
from tightwire.bench.programs import own_bound_s
from tightwire.cluster import PAYLOAD_SHARE, Cluster, Level
from tightwire.cluster.presets import preset
from tightwire.cluster.wiring import wiring_of
from tightwire.compression import Identity
from tightwire.jobs import Job
from tightwire.lab import Topology
from tightwire.lab.sharing import as_the_lab_runs, run_jobs, shared
from tightwire.simulate.collective import collective_of
from tightwire.units import print_rate
from tightwire.validate import megatron, transformers
from tightwire.validate.replanning import run_phases

NUM_BYTES = 16_000_000
LARGE_BYTES = 64_000_000
# One link at a quarter of the others' rate; two nodes joined by two lines, one at a quarter of the other.
UNEVEN = ("lines=1gbit+250mbit+1gbit+1gbit", "nodes=2x3,inside=1gbit,across=200mbit+50mbit")
LINE_BYTES_PER_S = 125e6
RAILS = "rails=2x2,inside=1gbit,across=1gbit"
SHARED_LINK = "nodes=2x2,inside=1gbit,across=100mbit"
RIVALS = 4
SAMPLES = 4
JOB_STEPS = 20
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
        return {**vars(self), "holds": self.holds}

    @classmethod
    def of_summary(cls, told: Mapping[str, Any]) -> LayerRow:
        """Returns the row of which `summary` told, as kept results hold it.

        >>> row = LayerRow(part="jobs", name="slowdown", measured=1.0, asked=1.08, unit="×")
        >>> LayerRow.of_summary(row.summary()) == row
        True
        """
        return cls(**{name: value for name, value in told.items() if name != "holds"})


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
    for text in UNEVEN:
        rows = _measured(text, NUM_BYTES, ("synthesised", *_rivals(text)), keeps_windows=True)
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


def _rivals(text: str) -> list[str]:
    """Returns the built-in programs that come into question as the fastest: the others' busiest line has more to do."""
    lab = Topology.parse(text)
    names = [name for name in PROGRAMS if name not in ("synthesised", "allgather", "native")]
    return sorted(names, key=lambda name: own_bound_s(name, NUM_BYTES, lab))[:RIVALS]


def jobs() -> Iterator[LayerRow]:
    """Two equal jobs whose exchange is 0.45 of a step on one link, and an urgent one beside a large one, in the lab."""
    lab = Topology.parse(SHARED_LINK)
    rate = PAYLOAD_SHARE * (lab.across_bytes_per_s or 0.0)
    equal = [_job(name, 0.55, 0.45, rate, place) for place, name in enumerate("ab")]
    for name, asked in (("fair", 2.0), ("interleaved", 1.08)):
        yield from _beside(lab, equal, name, asked)
    pair = [_job("large", 0.2, 0.8, rate, 0), _job("urgent", 0.4, 0.1, rate, 1)]
    fair = [row for row in _beside(lab, pair, "fair", 3.0) if "urgent" in row.name]
    yield from fair
    assert fair[0].measured is not None
    yield from (row for row in _beside(lab, pair, "intensity", fair[0].measured) if "urgent" in row.name)


def _beside(lab: Topology, jobs: list[Job], name: str, asked: float) -> Iterator[LayerRow]:
    """Runs jobs at once under a policy: each one's slowdown, beside its prediction."""
    predicted = {outcome.name: outcome for outcome in as_the_lab_runs(jobs, name, JOB_STEPS).jobs}
    steps_s = run_jobs(
        lab,
        [shared(job, predicted[job.name]) for job in jobs],
        JOB_STEPS,
        one_queue=name == "tcp",
    )
    for job in jobs:
        slowdown, expected = steps_s[job.name] / job.alone_s, predicted[job.name].slowdown
        yield LayerRow(
            part="jobs",
            name=f"job {job.name}, {name}: slowdown",
            measured=slowdown,
            predicted=expected,
            asked=asked,
            unit="×",
        )
        yield LayerRow(
            part="jobs",
            name=f"job {job.name}, {name}: off its prediction",
            measured=abs(slowdown / expected - 1),
            asked=0.1,
            unit="share",
        )


def _job(name: str, compute_s: float, wire_s: float, rate_bytes_per_s: float, place: int) -> Job:
    """Returns a job of two workers, one in each node, whose exchange takes so long on the line between nodes."""
    size = int(wire_s * rate_bytes_per_s) // 4 * 4
    return Job(
        name=name,
        compute_s=compute_s,
        ready_s=compute_s,
        bytes_by_link={0: float(size)},
        rates=(rate_bytes_per_s,),
        workers=(place, place + 2),
        exchange_bytes=size,
    )


def host_and_network() -> Iterator[LayerRow]:
    """A switch that adds, in the lab and on hardware that has one."""
    part = "host and network"
    rows = _measured("star", LARGE_BYTES, ("in-network", "in-network/int8", "ring"), workers=4)
    own, ring = rows["in-network"], rows["ring"]
    line_s = LARGE_BYTES / LINE_BYTES_PER_S
    yield LayerRow(
        part=part,
        name="in-network, 4 workers: over M/rate",
        measured=own.seconds / line_s,
        predicted=own.own_bound_s / line_s,
        asked=1.1,
        unit="×",
    )
    yield LayerRow(
        part=part,
        name="in-network/int8: over its own bound",
        measured=rows["in-network/int8"].own_ratio,
        predicted=1.0,
        asked=1.1,
        unit="×",
    )
    yield LayerRow(
        part=part,
        name="in-network: faster than ring",
        measured=ring.seconds / own.seconds,
        predicted=ring.own_bound_s / own.own_bound_s,
        asked=1.3,
        unit="×",
        at_least=True,
    )
    for nodes in (1, 16):
        cluster = preset("dgx-h100-sharp", nodes)
        seconds = {}
        for name in ("in-network", "ring"):
            collective = collective_of(AllReduce(name), name, cluster.workers, cluster.workers_per_node)
            line = collective.fit(cluster).at(LARGE_BYTES)
            seconds[name] = line.beta_s_per_byte * collective.moved_bytes(Identity(), LARGE_BYTES // 4, 4)
        yield LayerRow(
            part=part,
            name=f"dgx-h100-sharp, {nodes} nodes: in-network faster than ring, large buffers",
            predicted=seconds["ring"] / seconds["in-network"],
            asked=1.0,
            unit="×",
            at_least=True,
        )


def vertical() -> Iterator[LayerRow]:
    """A run under `auto` whose lines go from 1 Gb/s to 100 Mb/s and back."""
    part = "vertical"
    for number, phase in enumerate(run_phases(), start=1):
        name = f"phase {number}, {print_rate(phase.rate_bytes_per_s)}, {phase.plan}"
        yield LayerRow(
            part=part,
            name=f"{name}: steps until the plan fits",
            measured=float(phase.changed_after or 0),
            asked=20.0,
            unit="steps",
        )
        yield LayerRow(
            part=part, name=f"{name}: changes of plan", measured=float(phase.changes), asked=2.0, unit=""
        )
        yield LayerRow(
            part=part,
            name=f"{name}: throughput over the best static plan's",
            measured=phase.best_s / phase.step_s,
            asked=0.9,
            unit="share",
            at_least=True,
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


def _measured(
    text: str,
    num_bytes: int,
    programs: tuple[str, ...],
    workers: int | None = None,
    keeps_windows: bool = False,
) -> dict[str, CollectiveRow]:
    lab = Topology.parse(text, workers)
    bench = CollectivesBench(
        workers=lab.workers,
        rate_bytes_per_s=lab.rate_bytes_per_s or LINE_BYTES_PER_S,
        sizes=(num_bytes,),
        programs=programs,
        samples=SAMPLES,
        topology=text,
        keeps_windows=keeps_windows,
    )
    rows, _ = measure(bench)
    return {row.program: row for row in rows}


PARTS: Mapping[str, Callable[[], Iterator[LayerRow]]] = {
    "parallelisation": parallelisation,
    "collectives": collectives,
    "jobs": jobs,
    "dimensions": dimensions,
    "host-and-network": host_and_network,
    "vertical": vertical,
}
