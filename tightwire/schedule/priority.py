"""Schedules that move what the next forward needs first, and go on while it runs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire.answers import Answers, Refusal, text_with
from tightwire.errors import PlanError
from tightwire.schedule.merging import merge_by_kind
from tightwire.schedule.order import by_urgency
from tightwire.schedule.scheduler import (
    Agenda,
    BucketFacts,
    Partition,
    Piece,
    Schedule,
    TensorFacts,
    Wire,
    each,
    fuse,
    whole,
)
from tightwire.sync import Bsp
from tightwire.units import print_bytes

SLICE_MULTIPLE = 64  # bytes: slices begin where any dtype may
MAX_LANES = 4


@dataclass(frozen=True)
class Preemptive(Schedule):
    """What the members here share: they overlap the next forward, and so want gradients averaged in every step."""

    overlaps_forward: ClassVar[bool] = True
    measures: ClassVar[bool] = True

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        return each(tensors)

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a sync other than `bsp`: only there a step waits for nothing but its own gradients' means."""
        if isinstance(plan.sync, Bsp):
            return None
        return Refusal(
            reason=f"{self} makes the step's update gradient by gradient as the means of all workers arrive, which is "
            f"bsp; {plan.sync} agrees otherwise.",
            nearest=(text_with(plan, schedule="fusion"), text_with(plan, sync="bsp")),
        )


@dataclass(frozen=True)
class P3(Preemptive):
    """Slices gradients, and moves the slice that the next forward needs first; one at a time.

    Preemption is at slice boundaries: a slice under way is never interrupted, for no transport can.

    Args:
        slice_bytes: of a slice at most; the paper's 50,000 parameters by default.
    """

    name: ClassVar[str] = "p3"
    title: ClassVar[str] = "slices, first what the next forward needs first"
    paper: ClassVar[str] = "Jayarajan et al., Priority-based Parameter Propagation, arXiv:1905.03960"
    promise: ClassVar[str] = (
        "Slices by priority: 1.25 to 1.66 times the speed where lines are slow (Jayarajan et al. 2019)."
    )
    seen: ClassVar[str] = "`tightwire bench step` tells on a given machine."

    slice_bytes: int = 200 * 1024

    def __post_init__(self) -> None:
        _require_slice(self.name, self.slice_bytes)

    @property
    def cut_bytes(self) -> int:
        """What pieces of a bucket are cut to."""
        return self.slice_bytes

    def remark(self, num_bytes: int) -> str | None:  # noqa: D102
        return _cuts_nothing(self, self.slice_bytes, P3.slice_bytes, num_bytes)

    def agenda(self, buckets: Sequence[BucketFacts], wire: Wire | None = None) -> Agenda:  # noqa: D102
        return by_urgency(cut(tuple(buckets), self.slice_bytes), buckets, wire)


@dataclass(frozen=True)
class TicTac(Preemptive):
    """Moves whole tensors in the order in which the next forward needs them, among those that are ready.

    The paper finds that order in the graph of a parameter server's worker; here it is the measured order of
    backward, reversed, which for a chain of layers is the graph's critical path.
    """

    name: ClassVar[str] = "tictac"
    title: ClassVar[str] = "whole tensors in the order of the next forward"
    paper: ClassVar[str] = "Hashemi et al., TicTac, arXiv:1803.03288"
    promise: ClassVar[str] = "Up to 1.37 times the throughput by order alone (Hashemi et al. 2019)."
    seen: ClassVar[str] = "Order alone is seen to gain little on one line."

    def agenda(self, buckets: Sequence[BucketFacts], wire: Wire | None = None) -> Agenda:  # noqa: D102
        return by_urgency(whole(buckets), buckets, wire)


@dataclass(frozen=True)
class ByteScheduler(Preemptive):
    """Slices by priority, with so many bytes under way that the line never waits for a latency.

    What is under way can no longer be overtaken: more credit fills the line, less preempts sooner. Small
    gradients the paper moves one by one; each costs a latency whatever its size, and most of the 161 of a ResNet-50 are
    small, so that fusing them up to a quarter of a slice is well worth it. `auto` tunes all three.

    Args:
        partition_bytes: of a slice at most.
        credit_bytes: that may be under way, started and not arrived.
        fuse_bytes: gradients smaller than this travel with their neighbours; 0 for none, as in the paper.
    """

    name: ClassVar[str] = "bytescheduler"
    title: ClassVar[str] = "slices by priority, and a credit window"
    paper: ClassVar[str] = (
        "Peng et al., A Generic Communication Scheduler for Distributed DNN Training Acceleration, SOSP 2019"
    )
    promise: ClassVar[str] = "Up to 196 % faster, by slices, priority and credit (Peng et al. 2019)."
    seen: ClassVar[str] = "results/seven_methods.md tells."

    partition_bytes: int = 2**20
    credit_bytes: int = 2**21
    fuse_bytes: int = 0

    def __post_init__(self) -> None:
        _require_slice(self.name, self.partition_bytes)
        if self.credit_bytes < self.partition_bytes:
            raise PlanError(
                f"{self}: a credit of {print_bytes(self.credit_bytes)} never lets a slice of "
                f"{print_bytes(self.partition_bytes)} go; give it one slice at least, better two."
            )
        if not 0 <= self.fuse_bytes <= self.partition_bytes:
            raise PlanError(
                f"{self}: gradients fused up to {print_bytes(self.fuse_bytes)} would be cut again, into slices of "
                f"{print_bytes(self.partition_bytes)}; fuse up to a quarter of a slice, or 0 for not at all."
            )

    @property
    def cut_bytes(self) -> int:
        """What pieces of a bucket are cut to."""
        return self.partition_bytes

    def remark(self, num_bytes: int) -> str | None:  # noqa: D102
        return _cuts_nothing(self, self.partition_bytes, ByteScheduler.partition_bytes, num_bytes)

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        return fuse(tensors, self.fuse_bytes)

    def agenda(self, buckets: Sequence[BucketFacts], wire: Wire | None = None) -> Agenda:  # noqa: D102
        return by_urgency(
            cut(tuple(buckets), self.partition_bytes),
            buckets,
            wire,
            lanes=min(MAX_LANES, self.credit_bytes // self.partition_bytes),
            credit_bytes=self.credit_bytes,
        )


@dataclass(frozen=True)
class Pace(Preemptive):
    """Fuses small gradients by dynamic programming, cuts large ones, and moves by priority, one at a time.

    The paper fuses so that no transfer is too short to fill the line, and preempts between blocks. Fusion here is
    the optimal merge of `mgwfbp`, but no bucket grows beyond a block.

    Args:
        block_bytes: of a piece at most.
    """

    name: ClassVar[str] = "pace"
    title: ClassVar[str] = "preemptive, fused by dynamic programming"
    paper: ClassVar[str] = (
        "Bao et al., Preemptive All-reduce Scheduling for Expediting Distributed DNN Training, INFOCOM 2020"
    )
    promise: ClassVar[str] = (
        "Faster than fusion and than slices of one size, by preemption and merging (Bao et al. 2020)."
    )
    seen: ClassVar[str] = "`tightwire bench step` tells on a given machine."

    block_bytes: int = 2**21

    def __post_init__(self) -> None:
        _require_slice(self.name, self.block_bytes)

    @property
    def cut_bytes(self) -> int:
        """What pieces of a bucket are cut to."""
        return self.block_bytes

    def remark(self, num_bytes: int) -> str | None:  # noqa: D102
        return _cuts_nothing(self, self.block_bytes, Pace.block_bytes, num_bytes)

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        if wire is None:
            return each(tensors)
        merged = merge_by_kind(tensors, wire)
        return tuple(run for bucket in merged for run in _limit(bucket, tensors, self.block_bytes))

    def agenda(self, buckets: Sequence[BucketFacts], wire: Wire | None = None) -> Agenda:  # noqa: D102
        return by_urgency(cut(tuple(buckets), self.block_bytes), buckets, wire)


@functools.lru_cache(maxsize=32)  # a planner asks for the same slices on many wires
def cut(buckets: tuple[BucketFacts, ...], slice_bytes: int) -> tuple[Piece, ...]:
    """Cuts each divisible bucket into nearly equal slices of about `slice_bytes` at most."""
    return tuple(
        Piece(number, start, stop)
        for number, bucket in enumerate(buckets)
        for start, stop in itertools.pairwise(_bounds(bucket, slice_bytes))
    )


def _bounds(bucket: BucketFacts, slice_bytes: int) -> list[int]:
    if not bucket.divisible or bucket.num_bytes <= slice_bytes:
        return [0, bucket.num_bytes]
    slices = -(-bucket.num_bytes // slice_bytes)
    units = -(-bucket.num_bytes // SLICE_MULTIPLE)
    bounds = {min(bucket.num_bytes, SLICE_MULTIPLE * -(-units * i // slices)) for i in range(slices + 1)}
    return sorted(bounds)


def _limit(
    bucket: tuple[int, ...], tensors: Sequence[TensorFacts], limit_bytes: int
) -> Iterator[tuple[int, ...]]:
    """Yields a bucket's tensors again, in buckets no larger than the limit, a larger tensor alone."""
    held: list[int] = []
    for position in bucket:
        if held and sum(tensors[p].num_bytes for p in (*held, position)) > limit_bytes:
            yield tuple(held)
            held = []
        held.append(position)
    yield tuple(held)


def _require_slice(name: str, num_bytes: int) -> None:
    if num_bytes < SLICE_MULTIPLE:
        raise PlanError(
            f"{name}:{num_bytes}: a slice of fewer than {SLICE_MULTIPLE} bytes is all latency; write at least 64, "
            f"such as {name}:1MiB."
        )


def _cuts_nothing(schedule: Schedule, asked: int, default: int, num_bytes: int) -> str | None:
    """Says that slices larger than all gradients together cut nothing; of the default nobody expected it."""
    if asked <= num_bytes or asked == default:
        return None
    return (
        f"{schedule} cuts nothing here: all gradients together are {num_bytes:,} bytes, so each moves whole, and "
        "nothing is overtaken within one. Ask for slices of less than the largest gradient, or for tictac, which "
        "moves gradients whole."
    )
