"""DeAR: an all-reduce in two halves, one behind backward and one behind the next forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire.answers import Answers, Refusal, text_with
from tightwire.errors import PlanError
from tightwire.schedule.priority import Preemptive
from tightwire.schedule.scheduler import Agenda, BucketFacts, Partition, Piece, TensorFacts, Wire, fuse


@dataclass(frozen=True)
class DeAR(Preemptive):
    """Scatters each bucket's sum as it becomes ready, and gathers the sums in the order of the next forward.

    Nothing is cut and nothing overtakes: the two halves of a ring all-reduce, reduce-scatter and all-gather, are moved
    one at a time, all of the former before any of the latter.

    Args:
        bucket_bytes: a bucket is closed once it holds this much. The paper tunes it; `auto` does.
    """

    name: ClassVar[str] = "dear"
    title: ClassVar[str] = "reduce-scatter behind backward, all-gather behind the next forward"
    paper: ClassVar[str] = "Zhang et al., DeAR, arXiv:2302.12445"
    promise: ClassVar[str] = "Up to 83 % faster on 10 Gb/s, with both halves hidden (Zhang et al. 2023)."
    seen: ClassVar[str] = "`tightwire bench step` tells on a given machine."
    measures: ClassVar[bool] = False

    bucket_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        if self.bucket_bytes < 1:
            raise PlanError(
                f"dear:{self.bucket_bytes} has buckets of no size; write at least 1 byte, such as dear:4MiB."
            )

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        return fuse(tensors, self.bucket_bytes)

    def agenda(self, buckets: Sequence[BucketFacts], wire: Wire | None = None) -> Agenda:  # noqa: D102
        scatter = [Piece(i, 0, bucket.num_bytes, "scatter") for i, bucket in enumerate(buckets)]
        gather = [Piece(i, 0, bucket.num_bytes, "gather") for i, bucket in enumerate(buckets)]
        return Agenda(pieces=(*scatter, *reversed(gather)))

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses what has no two halves: lossy messages, and ways other than the ring."""
        if refusal := super().refusal(plan):
            return refusal
        if plan.compression_text != "none":
            return Refusal(
                reason=f"{self} stops halfway through an all-reduce, where {plan.compression_text} has no message to "
                "stop with.",
                nearest=(text_with(plan, compression="none"), text_with(plan, schedule="bytescheduler")),
            )
        if not plan.architecture.has_halves:
            return Refusal(
                reason=f"{self} stops halfway through a ring all-reduce, and {plan.architecture} is none.",
                nearest=(
                    text_with(plan, architecture="allreduce"),
                    text_with(plan, schedule="bytescheduler"),
                ),
            )
        return None
