"""Predicts a plan: its buckets, one round in virtual time, and what the end of the round waited for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import get_args

from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.profile import ParameterProfile, Profile
from tightwire.schedule import Agenda, BucketFacts, Partition, Schedule, TensorFacts, Wire
from tightwire.simulate.cost import BucketCost, Costs
from tightwire.simulate.prediction import Bound, Prediction, Span
from tightwire.simulate.step import Move, Steps, Timeline
from tightwire.sync import Sync

# Local methods subtract parameters from anchors, anchors from means, and copy the result back.
LOCAL_PASSES = 3
# Gradients are copied into buckets as they appear, which reads, writes and turns the caches over.
FILLING_PASSES = 4
STANDARD_DEVIATIONS = 2.0


def slowest_of(workers: int) -> float:
    """Returns how many standard deviations the slowest of N equal workers is expected to be late (Blom 1958).

    >>> [round(slowest_of(n), 2) for n in (1, 4, 64)]
    [0.0, 1.05, 2.34]
    """
    return statistics.NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25))


def predict(plan: Plan | str, profile: Profile, cluster: Cluster) -> Prediction:
    """Predicts the step time of a plan, with an interval and reasons.

    Compute runs as profiled; where workers share cores, it loses the processor time of what moves meanwhile. Of N
    workers whose compute varies as profiled, the slowest sets the pace. Buckets move one at a time, in the order
    that the plan's own scheduler decides; a bucket costs encoding, α + β · bytes of its program, and decoding.

    Args:
        plan: a plan or its text.
        profile: one worker's step without exchange.
        cluster: the wire; programs that were not measured are priced by formula.

    Raises:
        PlanError: the plan cannot be read, or cannot be predicted yet.

    >>> profile = Profile.uniform(layers=4, numel_per_layer=250_000, forward_s=0.1, backward_s=0.2)
    >>> predict("bsp/allreduce:ring", profile, Cluster.uniform(4, 25e6, 1e-4)).bound_by
    'wire'
    """
    parsed = Plan.parse(plan) if isinstance(plan, str) else plan
    return _Round(plan=parsed, profile=profile, cluster=cluster).prediction()


@lru_cache(maxsize=64)
def _partition(schedule: Schedule, parameters: tuple[ParameterProfile, ...], wire: Wire | None) -> Partition:
    facts = (
        TensorFacts(num_bytes=p.numel * p.itemsize, kind=p.itemsize, ready_s=p.ready_s) for p in parameters
    )
    return schedule.partition(list(facts), wire)


@dataclass(frozen=True, kw_only=True)
class _Round:
    """The steps that share one exchange."""

    plan: Plan
    profile: Profile
    cluster: Cluster

    def prediction(self) -> Prediction:
        steps, timeline, costs = self._sync.steps_per_round, self._timeline(), self._piece_costs
        before_s, after_s = self._around()
        path = tuple(self._critical_path(timeline, before_s, after_s))
        shares = _shares(path, timeline, costs)
        exchanged_s = timeline.end_s + before_s + after_s
        if timeline.period_s:  # the next forward does not wait for the end of the exchange
            exchanged_s = timeline.period_s
        round_s = self._late_s + exchanged_s
        deviation_s = self._deviation_s(shares)
        return Prediction(
            plan=str(self.plan),
            step_s=round_s / steps,
            low_s=max(0.0, round_s - STANDARD_DEVIATIONS * deviation_s) / steps,
            high_s=(round_s + STANDARD_DEVIATIONS * deviation_s) / steps,
            compute_s=(before_s + timeline.backward_end_s + after_s) / steps,
            codec_s=sum(cost.codec_s for cost in costs) / steps,
            exposed_s=(round_s - before_s - timeline.backward_end_s - after_s) / steps,
            bytes_per_step=round((sum(cost.sent_bytes for cost in costs) + self._control_bytes) / steps),
            bound_by=max(get_args(Bound), key=shares.__getitem__),
            critical_path=path,
        )

    @property
    def _sync(self) -> Sync:
        assert isinstance(self.plan.sync, Sync), self.plan.sync
        return self.plan.sync

    @property
    def _overlaps(self) -> bool:
        return self._sync.averages_gradients(self._sync.steps_per_round)

    @property
    def _late_s(self) -> float:
        """How much later than the others the slowest worker arrives; delays of several steps partly cancel out."""
        deviation_s = self.profile.noise * self.profile.compute_s * math.sqrt(self._sync.steps_per_round)
        return slowest_of(self.cluster.workers) * deviation_s

    @cached_property
    def _costs(self) -> Costs:
        return Costs(plan=self.plan, profile=self.profile, cluster=self.cluster)

    @property
    def _control_bytes(self) -> int:
        return self._costs.control_bytes if self._overlaps else 0

    @property
    def _schedule(self) -> Schedule:
        assert isinstance(self.plan.schedule, Schedule), self.plan.schedule
        return self.plan.schedule

    @cached_property
    def _wire(self) -> Wire | None:
        """What averaging a buffer costs, for schedules that decide by it."""
        if not self._schedule.measures or self.cluster.workers == 1:
            return None
        itemsize = self.profile.parameters[0].itemsize
        whole = self._costs.bucket(self.profile.num_bytes // itemsize, itemsize)
        latency_s, moving_s = whole.latency_s, whole.seconds - whole.latency_s
        return Wire(
            latency_s=latency_s,
            bytes_per_s=self.profile.num_bytes / moving_s if moving_s else math.inf,
        )

    @cached_property
    def _buckets(self) -> list[list[ParameterProfile]]:
        parameters = self.profile.parameters
        return [
            [parameters[p] for p in bucket] for bucket in _partition(self._schedule, parameters, self._wire)
        ]

    @cached_property
    def _agenda(self) -> Agenda:
        divisible = len(self.plan.compression) == 1  # stages remember buckets whole
        facts = [
            BucketFacts(
                num_bytes=sum(p.numel * p.itemsize for p in bucket),
                ready_s=max(p.ready_s for p in bucket),
                divisible=divisible,
            )
            for bucket in self._buckets
        ]
        return self._schedule.agenda(facts, self._wire)

    def _around(self) -> tuple[float, float]:
        """Returns the time before the round's last backward pass (or its exchange), and after its exchange."""
        profile, steps = self.profile, self._sync.steps_per_round
        if self._overlaps:
            return (steps - 1) * profile.compute_s + profile.forward_s, profile.optimizer_s
        numel = sum(p.numel for p in profile.parameters)
        return steps * profile.compute_s, LOCAL_PASSES * numel * profile.pass_s_per_element

    @cached_property
    def _piece_costs(self) -> list[BucketCost]:
        itemsizes = [bucket[0].itemsize for bucket in self._buckets]
        return [
            self._costs.bucket(piece.num_bytes // itemsizes[piece.bucket], itemsizes[piece.bucket])
            for piece in self._agenda.pieces
        ]

    @property
    def _filling_s(self) -> float:
        """What copying gradients into buckets adds to backward."""
        if self.cluster.workers == 1:
            return 0.0
        return (
            FILLING_PASSES * sum(p.numel for p in self.profile.parameters) * self.profile.pass_s_per_element
        )

    def _timeline(self) -> Timeline:
        overlaps, profile = self._overlaps, self.profile
        steps = Steps(
            forward_s=profile.forward_s,
            backward_s=profile.backward_s + self._filling_s if overlaps else 0.0,
            optimizer_s=profile.optimizer_s,
            ready_s=[max(p.ready_s for p in bucket) if overlaps else 0.0 for bucket in self._buckets],
            agenda=self._agenda,
            costs=self._piece_costs,
            control_s=self._costs.control_s if overlaps else 0.0,
            overlaps_forward=overlaps and self._schedule.overlaps_forward,
        )
        return steps.simulate(self._schedule.pacer(self._agenda))

    def _critical_path(self, timeline: Timeline, before_s: float, after_s: float) -> Iterator[Span]:
        """Yields what the end of the round waited for, in order of time."""
        if before_s > 0.0:
            yield Span(what="forward" if self._overlaps else "compute", start_s=0.0, end_s=before_s)
        if self._late_s > 0.0:
            yield Span(what="slowest worker", start_s=before_s, end_s=before_s + self._late_s)
        begin_s = before_s + self._late_s
        moves, start_s = _last_train(timeline)
        if start_s > 0.0:
            yield Span(what="backward", start_s=begin_s, end_s=begin_s + start_s)
        for move in moves:
            what = f"bucket {move.bucket}"
            yield Span(what=what, start_s=begin_s + move.start_s, end_s=begin_s + move.end_s)
        end_s = begin_s + timeline.end_s
        if not moves and timeline.control_end_s > timeline.backward_end_s:
            yield Span(what="control message", start_s=begin_s + start_s, end_s=end_s)
        if after_s > 0.0:
            yield Span(what="optimizer", start_s=end_s, end_s=end_s + after_s)

    def _deviation_s(self, shares: dict[str, float]) -> float:
        moving_s = shares["wire"] + shares["latency"]
        return math.hypot(self.profile.noise * shares["compute"], self._costs.fit.residual * moving_s)


def _last_train(timeline: Timeline) -> tuple[list[Move], float]:
    """Returns the buckets that moved back to back up to the end of the round, and when that began."""
    train: list[Move] = []
    start_s = timeline.end_s
    for move in reversed(timeline.moves):
        if not math.isclose(move.end_s, start_s, rel_tol=1e-9, abs_tol=1e-12):
            break
        train.insert(0, move)
        start_s = move.start_s
    return (train, start_s) if train else ([], timeline.backward_end_s)


def _shares(path: tuple[Span, ...], timeline: Timeline, costs: list[BucketCost]) -> dict[str, float]:
    """Returns the seconds of the critical path by what they are spent on."""
    train, _ = _last_train(timeline)
    on_path = [costs[move.piece] for move in train]
    control_s = sum(span.seconds for span in path if span.what == "control message")
    moving_s = sum(span.seconds for span in path if span.what.startswith("bucket")) + control_s
    return {
        "compute": sum(span.seconds for span in path) - moving_s,
        "wire": sum(cost.wire_s for cost in on_path),
        "latency": sum(cost.latency_s for cost in on_path) + control_s,
        "codec": sum(cost.codec_s for cost in on_path),
    }
