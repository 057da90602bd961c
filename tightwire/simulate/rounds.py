"""Predicts plans in which all workers agree in rounds: on gradients in every step, or on parameters every so often."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from typing import get_args

from tightwire.answers import CompressionAnswer
from tightwire.cluster import Cluster
from tightwire.compression.routing import compression_for
from tightwire.compression.stage import sender_of
from tightwire.plan import Plan
from tightwire.profile import ParameterProfile, Profile
from tightwire.schedule import Agenda, BucketFacts, Partition, Schedule, Streaming, TensorFacts, Wire
from tightwire.simulate.cost import FREE, BucketCost, Costs, costs_of, fit_of, node_of
from tightwire.simulate.pace import slowest_of
from tightwire.simulate.prediction import Bound, Prediction, Span
from tightwire.simulate.step import Move, Steps, Timeline
from tightwire.sync import HierarchicalLocal, Sync

# Local methods subtract parameters from anchors, anchors from means, and copy the result back.
LOCAL_PASSES = 3
# An outer step reads and writes a momentum as well.
OUTER_PASSES = 2
# Gradients are copied into buckets as they appear, which reads, writes and turns the caches over.
FILLING_PASSES = 4
STANDARD_DEVIATIONS = 2.0


def predict_rounds(plan: Plan, profile: Profile, cluster: Cluster) -> Prediction:
    """Predicts a plan under which all workers agree in rounds, that of a round's steps in the mean."""
    kinds: dict[str, type[_Bulk | _Delayed | _Local]] = {"delayed": _Delayed, "rounds": _Local}
    kind = kinds.get(plan.sync.predictor, _Bulk)
    return kind(plan=plan, profile=profile, cluster=cluster).prediction()


Routes = tuple[tuple[CompressionAnswer, ...], ...]


@lru_cache(maxsize=64)
def _routes(plan: Plan, parameters: tuple[ParameterProfile, ...]) -> Routes:
    """Returns how each parameter travels, by the runtime's own definition."""
    dims = (len(p.shape) or 2 for p in parameters)
    return tuple(
        compression_for(plan.compression, p.numel * p.itemsize, d)
        for p, d in zip(parameters, dims, strict=True)
    )


@lru_cache(maxsize=64)
def _partition(
    schedule: Schedule, parameters: tuple[ParameterProfile, ...], routes: Routes, wire: Wire | None
) -> Partition:
    facts = [
        TensorFacts(num_bytes=p.numel * p.itemsize, kind=(p.itemsize, *map(str, route)), ready_s=p.ready_s)
        for p, route in zip(parameters, routes, strict=True)
    ]
    return schedule.partition(facts, wire)


@dataclass(frozen=True, kw_only=True)
class _Exchange:
    """What one agreement moves: buckets, pieces, their costs."""

    plan: Plan
    profile: Profile
    cluster: Cluster

    @cached_property
    def costs(self) -> Costs:
        return costs_of(self.plan, self.profile, self.cluster)

    @property
    def schedule(self) -> Schedule:
        return self.plan.schedule

    @cached_property
    def wire(self) -> Wire | None:
        """What averaging a buffer costs, for schedules that decide by it."""
        if not self.schedule.measures or self.cluster.workers == 1:
            return None
        itemsize = self.profile.parameters[0].itemsize
        whole = self.costs.bucket(self.profile.num_bytes // itemsize, itemsize, self.plan.sender)
        latency_s, moving_s = whole.latency_s, whole.seconds - whole.latency_s
        bytes_per_s = self.profile.num_bytes / moving_s if moving_s else math.inf
        return Wire(latency_s=latency_s, bytes_per_s=bytes_per_s)

    @cached_property
    def positions(self) -> Partition:
        parameters = self.profile.parameters
        return _partition(self.schedule, parameters, self._routes, self.wire)

    @cached_property
    def _routes(self) -> Routes:
        return _routes(self.plan, self.profile.parameters)

    @cached_property
    def buckets(self) -> list[list[ParameterProfile]]:
        return [[self.profile.parameters[p] for p in bucket] for bucket in self.positions]

    @cached_property
    def agenda(self) -> Agenda:
        routes = [self._routes[bucket[0]] for bucket in self.positions]
        facts = [
            BucketFacts(
                num_bytes=sum(p.numel * p.itemsize for p in bucket),
                ready_s=max(p.ready_s for p in bucket),
                divisible=len(route) == 1,  # stages remember buckets whole
            )
            for bucket, route in zip(self.buckets, routes, strict=True)
        ]
        return self.schedule.agenda(facts, self.wire)

    @cached_property
    def piece_costs(self) -> list[BucketCost]:
        return [self._cost(number) for number in range(len(self.agenda.pieces))]

    def _cost(self, number: int) -> BucketCost:
        piece = self.agenda.pieces[number]
        bucket, sender = (
            self.buckets[piece.bucket],
            sender_of(self._routes[self.positions[piece.bucket][0]]),
        )
        itemsize = bucket[0].itemsize
        is_whole = piece.num_bytes == sum(p.numel * p.itemsize for p in bucket)
        shapes = tuple(p.shape or (p.numel,) for p in bucket) if is_whole else ()
        cost = self.costs.bucket(piece.num_bytes // itemsize, itemsize, sender, shapes)
        return cost if piece.phase == "mean" else _half(cost)

    @cached_property
    def whole(self) -> BucketCost:
        """All pieces, one after the other."""
        return reduce(BucketCost.__add__, self.piece_costs, FREE)

    @property
    def numel(self) -> int:
        """Elements of all parameters."""
        return sum(p.numel for p in self.profile.parameters)


@dataclass(frozen=True, kw_only=True)
class _Bulk(_Exchange):
    """An agreement on gradients, which overlaps with backward, and under some schedules with the next forward."""

    def prediction(self) -> Prediction:
        """Lets a step happen, and says what it waited for."""
        profile, timeline = self.profile, self._timeline()
        before_s, after_s = profile.forward_s, profile.optimizer_s
        path = tuple(self._critical_path(timeline, before_s, after_s))
        step_s = timeline.end_s + before_s + after_s
        if timeline.period_s:  # the next forward does not wait for the end of the exchange
            step_s = timeline.period_s
        step_s += self._late_s
        compute_s = before_s + timeline.backward_end_s + after_s
        shares = _shares(path, timeline, self.piece_costs)
        if timeline.period_s and timeline.period_s <= compute_s * 1.02:
            shares["compute"] = math.inf
        return spread(
            self,
            Prediction(
                plan=str(self.plan),
                step_s=step_s,
                low_s=step_s,
                high_s=step_s,
                compute_s=compute_s,
                codec_s=self.whole.codec_s,
                exposed_s=max(0.0, step_s - compute_s),
                bytes_per_step=self.whole.sent_bytes + self.costs.control.sent_bytes,
                bound_by=max(get_args(Bound), key=shares.__getitem__),
                critical_path=path,
            ),
        )

    @property
    def _late_s(self) -> float:
        """How much later than the others the slowest worker arrives."""
        return slowest_of(self.cluster.workers) * self.profile.noise * self.profile.compute_s

    @property
    def _filling_s(self) -> float:
        """What copying gradients into buckets adds to backward."""
        if self.cluster.workers == 1:
            return 0.0
        return FILLING_PASSES * self.numel * self.profile.pass_s_per_element

    def _timeline(self) -> Timeline:
        profile = self.profile
        steps = Steps(
            forward_s=profile.forward_s,
            backward_s=profile.backward_s + self._filling_s,
            optimizer_s=profile.optimizer_s,
            ready_s=[max(p.ready_s for p in bucket) for bucket in self.buckets],
            agenda=self.agenda,
            costs=self.piece_costs,
            control_s=self.costs.control.seconds,
            overlaps_forward=self.schedule.overlaps_forward and self.cluster.workers > 1,
        )
        return steps.simulate(self.schedule.pacer(self.agenda))

    def _critical_path(self, timeline: Timeline, before_s: float, after_s: float) -> Iterator[Span]:
        """Yields what the end of the round waited for, in order of time."""
        if before_s > 0.0:
            yield Span(what="forward", start_s=0.0, end_s=before_s)
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


@dataclass(frozen=True, kw_only=True)
class _Delayed(_Exchange):
    """Steps with means of the step before: compute and exchange side by side, the longer one sets the pace."""

    def prediction(self) -> Prediction:
        """Takes the longer of the two."""
        profile, whole, control = self.profile, self.whole, self.costs.control
        passes_s = (
            2 * self.numel * profile.pass_s_per_element
        )  # gradients go into their slot, means come back
        compute_s = profile.compute_s + passes_s + whole.stolen_s
        moving_s = max(whole.seconds, control.seconds)
        late_s = slowest_of(self.cluster.workers) * profile.noise * profile.compute_s
        step_s = max(compute_s, moving_s) + late_s
        return side_by_side(self, step_s, compute_s, whole, control.sent_bytes)


@dataclass(frozen=True, kw_only=True)
class _Local(_Exchange):
    """Rounds of parameters: several steps alone, then an exchange that all wait for, or that travels behind steps."""

    def prediction(self) -> Prediction:
        """Adds up a round, and shares it among its steps."""
        profile, steps = self.profile, self._sync.steps_per_round
        fragments, behind_s = self._fragments, self._steps_behind * profile.compute_s
        each = dataclasses.replace(_scaled(self.whole, 1 / fragments), latency_s=self.whole.latency_s)
        passes_s = self._passes * self.numel * profile.pass_s_per_element
        inner = self._inner
        waited_s = fragments * max(0.0, each.seconds + self.costs.message(1).seconds - behind_s)
        late_s = slowest_of(self.cluster.workers) * profile.noise * profile.compute_s * math.sqrt(steps)
        exposed_s = waited_s + inner.seconds + late_s + passes_s
        hidden = min(1.0, behind_s / each.seconds) if each.seconds else 0.0
        compute_s = steps * profile.compute_s + fragments * hidden * each.stolen_s
        sent = fragments * (each.sent_bytes + self.costs.message(1).sent_bytes) + inner.sent_bytes
        path = (
            Span(what="compute", start_s=0.0, end_s=compute_s),
            Span(what="slowest worker", start_s=compute_s, end_s=compute_s + late_s),
            Span(what="exchange", start_s=compute_s + late_s, end_s=compute_s + exposed_s),
        )
        moving = _scaled(self.whole, waited_s / (fragments * each.seconds) if each.seconds else 0.0) + inner
        round_s = compute_s + exposed_s
        shares = {
            "compute": compute_s + late_s + passes_s,
            "wire": moving.wire_s,
            "latency": moving.latency_s,
            "codec": moving.codec_s,
        }
        found = Prediction(
            plan=str(self.plan),
            step_s=round_s / steps,
            low_s=round_s / steps,
            high_s=round_s / steps,
            compute_s=(compute_s + passes_s) / steps,
            codec_s=(self.whole.codec_s + inner.codec_s) / steps,
            exposed_s=(exposed_s - passes_s) / steps,
            bytes_per_step=round(sent / steps),
            bound_by=max(get_args(Bound), key=shares.__getitem__),
            critical_path=path,
        )
        return spread(self, found, rounds_in=math.sqrt(steps) / steps)

    @property
    def _sync(self) -> Sync:
        return self.plan.sync

    @property
    def _fragments(self) -> int:
        return self.schedule.fragments if isinstance(self.schedule, Streaming) else 1

    @property
    def _steps_behind(self) -> int:
        """How many steps are made while an exchange travels."""
        if isinstance(self.schedule, Streaming):
            return self.schedule.overlap
        return self._sync.steps_late

    @property
    def _passes(self) -> int:
        return LOCAL_PASSES + (OUTER_PASSES if self._sync.has_outer_step else 0)

    @property
    def _inner(self) -> BucketCost:
        """The exchanges inside a node between two over all workers."""
        sync = self._sync
        if not isinstance(sync, HierarchicalLocal):
            return FREE
        node = sync.node or self.cluster.workers_per_node
        if node < 2:
            return FREE
        inside = dataclasses.replace(self, cluster=node_of(self.cluster, node))
        return _scaled(inside.whole, sync.H2 // sync.H1 - 1)


def spread(exchange: _Exchange, found: Prediction, rounds_in: float = 1.0) -> Prediction:
    """Returns a prediction with its interval: what compute's noise and the wire's fit leave open."""
    moving_s = found.exposed_s if found.bound_by != "compute" else min(found.exposed_s, found.step_s / 2)
    residual = fit_of(exchange.plan, exchange.profile, exchange.cluster).residual
    deviation_s = math.hypot(
        exchange.profile.noise * found.compute_s * rounds_in,
        residual * moving_s if exchange.cluster.workers > 1 else 0.0,
    )
    return dataclasses.replace(
        found,
        low_s=max(0.0, found.step_s - STANDARD_DEVIATIONS * deviation_s),
        high_s=found.step_s + STANDARD_DEVIATIONS * deviation_s,
    )


def side_by_side(
    exchange: _Exchange, step_s: float, compute_s: float, moving: BucketCost, control_bytes: int
) -> Prediction:
    """Returns the prediction of compute and exchange that nothing but the longer one of bounds."""
    is_computing = compute_s >= moving.seconds
    on_wire: Bound = "wire" if moving.wire_s >= max(moving.latency_s, moving.codec_s) else "latency"
    what = "compute" if is_computing else "exchange"
    found = Prediction(
        plan=str(exchange.plan),
        step_s=step_s,
        low_s=step_s,
        high_s=step_s,
        compute_s=compute_s,
        codec_s=moving.codec_s,
        exposed_s=max(0.0, step_s - compute_s),
        bytes_per_step=moving.sent_bytes + control_bytes,
        bound_by="compute" if is_computing else on_wire,
        critical_path=(Span(what=what, start_s=0.0, end_s=step_s),),
    )
    return spread(exchange, found)


def _half(cost: BucketCost) -> BucketCost:
    """Returns half of an all-reduce: its reduce-scatter, or its all-gather."""
    return dataclasses.replace(_scaled(cost, 0.5), latency_s=cost.latency_s / 2)


def _scaled(cost: BucketCost, factor: float) -> BucketCost:
    return BucketCost(
        codec_s=factor * cost.codec_s,
        latency_s=factor * cost.latency_s,
        wire_s=factor * cost.wire_s,
        sent_bytes=round(factor * cost.sent_bytes),
        stolen_s=factor * cost.stolen_s,
    )


def _last_train(timeline: Timeline) -> tuple[list[Move], float]:
    """Returns the pieces that moved back to back, or side by side, up to the end of the round, and when that began."""
    train: list[Move] = []
    start_s = timeline.end_s
    for move in reversed(timeline.moves):
        if move.end_s < start_s and not math.isclose(move.end_s, start_s, rel_tol=1e-9, abs_tol=1e-12):
            break
        train.insert(0, move)
        start_s = min(start_s, move.start_s)
    return (train, start_s) if train else ([], timeline.backward_end_s)


def _shares(path: tuple[Span, ...], timeline: Timeline, costs: list[BucketCost]) -> dict[str, float]:
    """Returns the seconds of the critical path by what they are spent on."""
    train, start_s = _last_train(timeline)
    on_path = reduce(BucketCost.__add__, (costs[move.piece] for move in train), FREE)
    control_s = sum(span.seconds for span in path if span.what == "control message")
    moving_s = (timeline.end_s - start_s if train else 0.0) + control_s
    # Where pieces move side by side, their latencies overlap.
    latency_s = max(0.0, min(on_path.latency_s, moving_s - on_path.wire_s - on_path.codec_s))
    total_s = path[-1].end_s if path else 0.0
    return {
        "compute": total_s - moving_s,
        "wire": on_path.wire_s,
        "latency": latency_s + control_s,
        "codec": on_path.codec_s,
    }
