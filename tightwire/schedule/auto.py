"""auto: a schedule that is searched for while the run trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire.errors import PlanError
from tightwire.schedule.priority import ByteScheduler, Preemptive
from tightwire.schedule.scheduler import Agenda, BucketFacts, Partition, TensorFacts, Wire

START = ByteScheduler(2**20, 2**21, 2**18)


@dataclass(frozen=True)
class Auto(Preemptive):
    """Begins as `bytescheduler`, tries other schedules and sizes during training, and ends with the fastest.

    A black-box search (tree-structured Parzen estimators) over which schedule, how large its buckets or slices and how
    much credit. Every trial is a few steps of training like any others: all schedules average the same gradients. The
    search stops by itself, and the start is among what it compares at the end.

    Args:
        trials: at most; fewer once several in a row bring nothing.
    """

    name: ClassVar[str] = "auto"
    title: ClassVar[str] = "searched for during the run"
    paper: ClassVar[str] = (
        "Akiba et al., Optuna, arXiv:1907.10902; partition and credit as in ByteScheduler, SOSP 2019"
    )
    promise: ClassVar[str] = "Finds a size and a credit in tens of tries (Peng et al. 2019)."
    seen: ClassVar[str] = "`tightwire bench step` tells on a given machine."

    trials: int = 16

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise PlanError(f"auto:{self.trials} tries nothing; give it 1 trial at least.")

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        return START.partition(tensors, wire)

    def agenda(self, buckets: Sequence[BucketFacts], wire: Wire | None = None) -> Agenda:  # noqa: D102
        return START.agenda(buckets, wire)
