"""What-ifs by the thousand: the best plan over ranges of bandwidth, latency, workers and compute, in one process."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tightwire.cluster import Cluster
from tightwire.cluster.prices import print_amount
from tightwire.cluster.workers import first_of
from tightwire.errors import PlanError, ProgramError, UnitError
from tightwire.plan import Plan
from tightwire.planner.break_even import pool_of, slower
from tightwire.planner.candidates import Allowance, departures, stock_plan
from tightwire.planner.money import cost_per_step
from tightwire.planner.ranking import By, choose_by, rank, usual
from tightwire.planner.scaling import smaller
from tightwire.profile import Profile
from tightwire.simulate import Prediction, predict
from tightwire.simulate.stragglers import paced
from tightwire.units import of_option, parse_rate, parse_seconds, print_rate

# How many points a range of anything but workers has; of workers, each twice the one before.
POINTS = 9
MOST_WORKERS = 1_000_000
# A line below this is a number without its unit.
SLOWEST_BYTES_PER_S = 1000.0


def _parse_workers(text: str) -> float:
    """Reads a number of workers.

    Raises:
        UnitError: no whole number that a cluster can have.
    """
    if not text.strip().isdigit() or not 1 <= int(text) <= MOST_WORKERS:
        raise UnitError(f"{text!r} is no number of workers; write 1 to {MOST_WORKERS:,}")
    return float(text)


READ: dict[str, Callable[[str], float]] = {
    "bandwidth": parse_rate,
    "latency": parse_seconds,
    "compute": parse_seconds,
    "workers": _parse_workers,
}


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One point of a sweep.

    Attributes:
        bandwidth_bytes_per_s: of each worker's line.
        latency_s: of a message.
        compute_s: of a step without exchange.
        workers: how many.
        chosen: the prediction of the plan that would be chosen there.
        stock_step_s: what a step takes by plain all-reduce.
        cost_per_step: of all workers, with the plan chosen; 0: nobody told a price.
        samples_per_step: of all workers; 0: not known.
    """

    bandwidth_bytes_per_s: float
    latency_s: float
    compute_s: float
    workers: int
    chosen: Prediction
    stock_step_s: float
    cost_per_step: float = 0.0
    samples_per_step: int = 0

    @property
    def cost_per_million(self) -> float:
        """What a million samples cost; batches of one worker where nobody told how many samples one has."""
        return self.cost_per_step / (self.samples_per_step or self.workers) * 1e6

    @property
    def efficiency(self) -> float:
        """What a worker does, as a share of what it would do alone."""
        return self.compute_s / self.chosen.step_s

    def values(self) -> dict[str, Any]:
        """Returns the row as plain values."""
        return {
            "bandwidth_bytes_per_s": self.bandwidth_bytes_per_s,
            "latency_s": self.latency_s,
            "compute_s": self.compute_s,
            "workers": self.workers,
            "stock_step_s": self.stock_step_s,
            "efficiency": self.efficiency,
            "cost_per_step": self.cost_per_step or None,
            "cost_per_million": self.cost_per_million or None,
            **self.chosen.values(),
        }


def sweep(
    profile: Profile,
    cluster: Cluster,
    axes: Mapping[str, Sequence[float]],
    *,
    allow: Allowance = "lossless",
    by: By | None = None,
    plans: Sequence[Plan | str] = (),
) -> tuple[SweepRow, ...]:
    """Predicts a few plans at every point of a grid, and chooses at each as `recommend` would.

    Args:
        profile: one worker's step without exchange.
        cluster: the wire at the point from which axes depart.
        axes: values of `bandwidth` (bytes per second of payload), `latency` and `compute` (seconds), `workers`.
        allow: as in `recommend`.
        by: likewise; by `cost`, points come back with the cheapest samples first.
        plans: to choose among, beside plain all-reduce; none: the best of each kind at the present point and on a slow
            wire.

    Raises:
        PlanError: an axis that does not exist, or that cannot be changed on this cluster; or no price to go by.

    >>> profile = Profile.uniform(layers=4, numel_per_layer=250_000, forward_s=0.1, backward_s=0.2)
    >>> rows = sweep(profile, Cluster.uniform(4, 1e8, 1e-4), {"workers": [2, 8]}, plans=["bsp/allreduce/none/mgwfbp"])
    >>> [row.workers for row in rows]
    [2, 8]
    """
    if unknown := [axis for axis in axes if axis not in READ]:
        raise PlanError(f"a sweep over {unknown[0]} is not known; known: {', '.join(READ)}.")
    parsed = [Plan.parse(plan) if isinstance(plan, str) else plan for plan in plans]
    by = by or usual(allow)
    pool = [stock_plan(), *parsed] if parsed else pool_of(rank(profile, cluster, allow, by))
    rows = [_row(*point, by) for point in predictions_over(profile, cluster, axes, pool)]
    return tuple(sorted(rows, key=lambda row: row.cost_per_million) if by == "cost" else rows)


def predictions_over(
    profile: Profile, cluster: Cluster, axes: Mapping[str, Sequence[float]], plans: Sequence[Plan]
) -> Iterator[tuple[Profile, Cluster, list[Prediction]]]:
    """Yields every point of a grid, the last axis fastest, with what is predicted of each plan that can be had there.

    Raises:
        PlanError: plain all-reduce cannot be had somewhere, or an axis cannot be changed on this cluster.
    """
    for values in itertools.product(*axes.values()):
        there = dict(zip(axes, values, strict=True))
        found_profile, found_cluster = _profile_at(profile, there), _cluster_at(cluster, there)
        rows = []
        for plan in plans:
            try:
                rows.append(predict(plan, found_profile, found_cluster, quick=True))
            except (PlanError, ProgramError):
                if departures(plan) == 0:
                    raise
        yield found_profile, found_cluster, rows


def parse_axes(text: str) -> dict[str, tuple[float, ...]]:
    """Reads `bandwidth=1gbit..400gbit,workers=8..512` as axes; a value alone is one point.

    >>> parse_axes("workers=8..40,latency=1ms")
    {'workers': (8.0, 16.0, 32.0, 40.0), 'latency': (0.001,)}

    Raises:
        PlanError: an axis that does not exist, or a range that does not grow.
        UnitError: a number that cannot be read.
    """
    axes: dict[str, tuple[float, ...]] = {}
    for part in text.split(","):
        name, _, span = part.strip().partition("=")
        if name not in READ or not span:
            raise PlanError(
                f"--sweep {part!r} is no axis; write {', '.join(READ)}, as in bandwidth=1gbit..400gbit,workers=8..512."
            )
        first, _, last = span.partition("..")
        try:
            low = of_option("--sweep", READ[name], first)
            high = of_option("--sweep", READ[name], last) if last else low
        except ValueError as error:
            raise PlanError(f"--sweep {part!r} cannot be read: {str(error).rstrip('.')}.") from None
        if name in axes:
            raise PlanError(f"--sweep {part!r}: {name} is given twice; write one range for it.")
        if not 0 < low <= high:
            raise PlanError(
                f"--sweep {part!r} does not grow from more than 0; write the smaller value first."
            )
        if name == "bandwidth" and low < SLOWEST_BYTES_PER_S:
            raise PlanError(
                f"--sweep {part!r} begins at {8 * low:g} bits a second; write the unit, as in 1gbit."
            )
        axes[name] = tuple(_points(name, low, high))
    return axes


def table(rows: Sequence[SweepRow]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the cells of a table for people."""
    has_prices = any(row.cost_per_step for row in rows)
    head = [
        "plan",
        "workers",
        "line",
        "step s",
        "x stock",
        "of one each",
        *(["1M cost"] if has_prices else []),
    ]
    cells = [
        [
            str(row.chosen.plan),
            f"{row.workers:,}",
            print_rate(row.bandwidth_bytes_per_s),
            f"{row.chosen.step_s:.3g}",
            f"{row.stock_step_s / row.chosen.step_s:.2f}",
            f"{row.efficiency:.0%}",
            *([print_amount(row.cost_per_million)] if has_prices else []),
        ]
        for row in rows
    ]
    return head, cells


def sweep_figure(rows: Sequence[SweepRow]) -> Any:
    """Returns a plotly figure: how well workers are used against bandwidth, a curve per number of workers."""
    import plotly.graph_objects as go

    found = go.Figure()
    for workers in sorted({row.workers for row in rows}):
        points = sorted(
            (row for row in rows if row.workers == workers), key=lambda r: r.bandwidth_bytes_per_s
        )
        found.add_scatter(
            x=[row.bandwidth_bytes_per_s * 8 / 1e9 for row in points],
            y=[100 * row.efficiency for row in points],
            text=[str(row.chosen.plan) for row in points],
            name=f"{workers:,} workers",
            mode="lines+markers",
        )
    found.update_layout(
        template="plotly_white",
        title="How well workers are used against bandwidth, with the plan chosen at each point, predicted",
        legend={"orientation": "h", "y": -0.2},
        xaxis={"title": "bandwidth of each worker's line, Gb/s of payload", "type": "log"},
        yaxis={"title": "work of each worker, % of one alone", "rangemode": "tozero"},
    )
    return found


def _points(name: str, low: float, high: float) -> Iterator[float]:
    if name == "workers":
        value = low
        while value < high:
            yield value
            value *= 2
        yield high
    elif low == high:
        yield low
    else:
        yield from (low * (high / low) ** (i / (POINTS - 1)) for i in range(POINTS))


def _profile_at(profile: Profile, there: Mapping[str, float]) -> Profile:
    if "compute" not in there:
        return profile
    return slower(profile, there["compute"] / (profile.forward_s + profile.backward_s))


def _cluster_at(cluster: Cluster, there: Mapping[str, float]) -> Cluster:
    if "workers" in there and int(there["workers"]) != cluster.workers:
        workers = int(there["workers"])
        if cluster.levels or cluster.graph is not None:
            if workers > cluster.workers:
                raise PlanError(
                    f"{workers} workers are more than this cluster's {cluster.workers}, whose links are given."
                )
            cluster = smaller(cluster, workers)
        else:
            kinds = first_of(cluster.kinds, workers)
            if kinds and workers > cluster.workers:
                raise PlanError(
                    f"{workers} workers are more than this cluster's {cluster.workers}, whose kinds are given."
                )
            cluster = dataclasses.replace(
                cluster, workers=workers, devices=None, fits=(), pairs=(), kinds=kinds
            )
    if "latency" in there:
        _require_own_latency(cluster)
        cluster = dataclasses.replace(cluster, latency_s=there["latency"])
    if "bandwidth" in there:
        cluster = cluster.scaled(there["bandwidth"] / cluster.bandwidth_bytes_per_s)
    return cluster


def _require_own_latency(cluster: Cluster) -> None:
    """Refuses a latency for all where each link has its own, or programs were timed: nothing would follow from it.

    Raises:
        PlanError: says which of them.
    """
    if cluster.levels or cluster.graph is not None:
        raise PlanError(
            "a sweep over latency is for lines that are all alike, and this cluster's links have latencies of their "
            "own: leave latency out, or write --workers and --bandwidth for the cluster."
        )
    if cluster.fits:
        raise PlanError(
            f"a sweep over latency is for clusters of which nothing was measured, and here {cluster.fits[0].program} "
            "was timed, its latency with it: leave latency out, or write --workers and --bandwidth for the cluster."
        )


def _row(profile: Profile, cluster: Cluster, found: list[Prediction], by: By) -> SweepRow:
    found.sort(key=lambda row: row.step_s)
    stock = next(row for row in found if departures(row.plan) == 0)
    chosen = choose_by(by, found, stock, profile, cluster)
    return SweepRow(
        bandwidth_bytes_per_s=cluster.bandwidth_bytes_per_s,
        latency_s=cluster.latency_s,
        compute_s=paced(profile, cluster).compute_s,
        workers=cluster.workers,
        chosen=chosen,
        stock_step_s=stock.step_s,
        cost_per_step=cost_per_step(chosen, cluster),
        samples_per_step=profile.samples * cluster.workers,
    )
