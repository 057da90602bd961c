"""Schedules that need no measurement: everything at once, each tensor alone, or fixed sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire.errors import PlanError
from tightwire.schedule.scheduler import (
    AfterBackward,
    Agenda,
    Partition,
    Schedule,
    Scheduler,
    TensorFacts,
    Wire,
    each,
    fuse,
)

# DDP's buckets: those of its bucket_cap_mb where none is given, and the first of them.
USUAL_BYTES, FIRST_BYTES = 25 * 2**20, 2**20


@dataclass(frozen=True)
class Sequential(Schedule):
    """Exchanges everything as one bucket (per kind) after backward: no overlap, least latency."""

    name: ClassVar[str] = "sequential"
    title: ClassVar[str] = "one fused exchange after backward"
    paper: ClassVar[str] = (
        "BSP-A2A and BSP-PS in Shi et al., A Quantitative Survey of Communication Optimizations"
    )
    promise: ClassVar[str] = "The reference: nothing is hidden."
    seen: ClassVar[str] = "results/seven_methods.md holds the others to it."

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        return fuse(tensors, math.inf)

    def pacer(self, agenda: Agenda) -> Scheduler:  # noqa: D102
        return AfterBackward(len(agenda.pieces))


@dataclass(frozen=True)
class Wfbp(Schedule):
    """Exchanges each gradient by itself as soon as it is ready (wait-free backpropagation)."""

    name: ClassVar[str] = "wfbp"
    title: ClassVar[str] = "each tensor as soon as it is ready"
    paper: ClassVar[str] = "Zhang et al., Poseidon, arXiv:1706.03292"
    promise: ClassVar[str] = "Hides the exchange behind backward (Zhang et al. 2017)."
    seen: ClassVar[str] = "results/seven_methods.md tells."

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        return each(tensors)


@dataclass(frozen=True)
class Fusion(Schedule):
    """Exchanges buckets of a fixed size, each as soon as its last gradient is ready.

    As in DDP, the first of the usual buckets is small, so that something is on its way early; a size of one's own
    holds for all. What a codec makes small is not worth another message.

    Args:
        bucket_bytes: a bucket is closed once it holds this much; the unit may be written, as in `fusion:4MiB`.
    """

    name: ClassVar[str] = "fusion"
    title: ClassVar[str] = "buckets of a fixed size"
    paper: ClassVar[str] = (
        "Sergeev & Del Balso, Horovod, arXiv:1802.05799; Li et al., PyTorch DDP, arXiv:2006.15704"
    )
    promise: ClassVar[str] = (
        "Fewer start-ups: 25 MiB is PyTorch's choice, and 1 MiB for the first (Li et al. 2020)."
    )
    seen: ClassVar[str] = "`tightwire bench step` tells on a given machine."

    bucket_bytes: int = USUAL_BYTES

    def __post_init__(self) -> None:
        if self.bucket_bytes < 1:
            raise PlanError(
                f"fusion:{self.bucket_bytes} has buckets of no size; write at least 1 byte, such as fusion:4MiB."
            )

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        return fuse(tensors, self.bucket_bytes, FIRST_BYTES if self.bucket_bytes == USUAL_BYTES else None)
