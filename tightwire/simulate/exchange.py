"""What one agreement among all workers moves: buckets, pieces, and what each of them costs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from tightwire.answers import CompressionAnswer, Sender
from tightwire.cluster import Cluster
from tightwire.compression.routing import compression_for
from tightwire.compression.stage import sender_of
from tightwire.plan import Plan
from tightwire.profile import ParameterProfile, Profile
from tightwire.schedule import Agenda, BucketFacts, Partition, Piece, Schedule, TensorFacts, Wire
from tightwire.simulate.cost import BucketCost, Costs, costs_of, fit_of, total
from tightwire.simulate.interval import with_interval
from tightwire.simulate.prediction import Prediction

Routes = tuple[tuple[CompressionAnswer, ...], ...]


@lru_cache(maxsize=256)
def _routes(compression: tuple[CompressionAnswer, ...], profile: Profile) -> Routes:
    """Returns how each parameter travels, by the runtime's own definition."""
    parameters = profile.parameters
    dims = (len(p.shape) or 2 for p in parameters)
    return tuple(
        compression_for(compression, p.numel * p.itemsize, d) for p, d in zip(parameters, dims, strict=True)
    )


@lru_cache(maxsize=256)
def _facts(compression: tuple[CompressionAnswer, ...], profile: Profile) -> tuple[TensorFacts, ...]:
    return tuple(
        TensorFacts(
            num_bytes=p.numel * p.itemsize,
            kind=(p.itemsize, *map(str, route)),
            ready_s=p.ready_s,
            is_exact=sender_of(route).lossless,
        )
        for p, route in zip(profile.parameters, _routes(compression, profile), strict=True)
    )


@lru_cache(maxsize=256)
def _partition(
    schedule: Schedule, compression: tuple[CompressionAnswer, ...], profile: Profile, wire: Wire | None
) -> Partition:
    return schedule.partition(_facts(compression, profile), wire)


@dataclass(frozen=True, kw_only=True)
class SimulatedExchange:
    """What one agreement moves: buckets, pieces, their costs."""

    plan: Plan
    profile: Profile
    cluster: Cluster
    quick: bool = False

    def with_interval(self, found: Prediction, steps: int = 1) -> Prediction:
        """Returns a prediction with its interval; delays of single steps average out over `steps`."""
        residual = fit_of(self.plan, self.profile, self.cluster).residual
        return with_interval(found, self.profile, self.cluster, residual, steps=steps)

    @cached_property
    def costs(self) -> Costs:
        """What prices the buckets."""
        return costs_of(self.plan, self.profile, self.cluster)

    @property
    def schedule(self) -> Schedule:
        """The plan's own."""
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
        return Wire(latency_s=latency_s, bytes_per_s=bytes_per_s, is_guess=self.quick)

    @cached_property
    def positions(self) -> Partition:
        """Which parameters are fused into which bucket."""
        return _partition(self.schedule, self.plan.compression, self.profile, self.wire)

    @cached_property
    def _routes(self) -> Routes:
        return _routes(self.plan.compression, self.profile)

    @cached_property
    def buckets(self) -> list[list[ParameterProfile]]:
        """The parameters of each bucket."""
        return [[self.profile.parameters[p] for p in bucket] for bucket in self.positions]

    @cached_property
    def agenda(self) -> Agenda:
        """The pieces of buckets, in the order that all workers keep to."""
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
        """What each piece costs."""
        known: dict[tuple[int, int, str], BucketCost] = {}  # slices of one bucket are of one size, or two
        costs = []
        for piece in self.agenda.pieces:
            key = piece.bucket, piece.num_bytes, piece.phase
            if key not in known:
                known[key] = self._cost(piece)
            costs.append(known[key])
        return costs

    def sender_of(self, bucket: int) -> Sender:
        """Returns what a bucket goes by."""
        return sender_of(self._routes[self.positions[bucket][0]])

    def _cost(self, piece: Piece) -> BucketCost:
        bucket, sender = self.buckets[piece.bucket], self.sender_of(piece.bucket)
        itemsize = bucket[0].itemsize
        is_whole = piece.num_bytes == sum(p.numel * p.itemsize for p in bucket)
        shapes = tuple(p.shape or (p.numel,) for p in bucket) if is_whole else ()
        cost = self.costs.bucket(piece.num_bytes // itemsize, itemsize, sender, shapes)
        return cost if piece.phase == "mean" else half(cost)

    @cached_property
    def whole(self) -> BucketCost:
        """All pieces, one after the other."""
        return total(self.piece_costs)

    @property
    def numel(self) -> int:
        """Elements of all parameters."""
        return sum(p.numel for p in self.profile.parameters)


def half(cost: BucketCost) -> BucketCost:
    """Returns half of an all-reduce: its reduce-scatter, or its all-gather."""
    return dataclasses.replace(scaled(cost, 0.5), latency_s=cost.latency_s / 2)


def scaled(cost: BucketCost, factor: float) -> BucketCost:
    """Returns a cost times a factor."""
    return BucketCost(
        codec_s=factor * cost.codec_s,
        latency_s=factor * cost.latency_s,
        wire_s=factor * cost.wire_s,
        sent_bytes=round(factor * cost.sent_bytes),
        copy_s=factor * cost.copy_s,
        stolen_s=factor * cost.stolen_s,
        across_bytes=factor * cost.across_bytes,
    )
