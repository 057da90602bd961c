"""A job as the network sees it: so long it computes, then so many bytes cross these links, again and again."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from tightwire import files
from tightwire.architecture import AllReduce, Setting
from tightwire.cluster import Cluster, require_range
from tightwire.cluster.wiring import wiring_of
from tightwire.compression import Codec, Identity
from tightwire.errors import FileError, PlanError
from tightwire.plan import Plan
from tightwire.profile import Profile

MAX_SECONDS = 1e6
MAX_BYTES = 10**15
ITEM_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class JobEntry:
    """A job as a file has it.

    Attributes:
        name: to tell it apart.
        workers: ranks of the cluster that it runs on.
        compute_s: of a step; or
        profile: a file from `tightwire profile`.
        exchange_bytes: that its workers average in each step; the profile's gradients if not given.
        plan: by which they do.
        ready_s: from the start of a step, when its exchange may begin; by default when compute ends, or, with a
            profile, when the first gradients are ready.
        start_s: when it begins.
    """

    __pydantic_config__: ClassVar = files.STRICT

    name: str
    workers: tuple[int, ...]
    compute_s: float | None = None
    profile: str | None = None
    exchange_bytes: int | None = None
    plan: str = "bsp/allreduce:ring"
    ready_s: float | None = None
    start_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.compute_s is None) == (self.profile is None):
            raise FileError(f"job {self.name}: write compute_s and exchange_bytes, or a profile.")
        if self.profile is None and self.exchange_bytes is None:
            raise FileError(
                f"job {self.name}: exchange_bytes is missing: how much its workers average in a step."
            )
        require_range(f"job {self.name}: compute_s", self.compute_s or 0.0, 0.0, MAX_SECONDS)
        require_range(f"job {self.name}: ready_s", self.ready_s or 0.0, 0.0, MAX_SECONDS)
        require_range(f"job {self.name}: start_s", self.start_s, 0.0, MAX_SECONDS)
        if self.exchange_bytes is not None:
            require_range(f"job {self.name}: exchange_bytes", self.exchange_bytes, ITEM_BYTES, MAX_BYTES)
        if not self.workers or len(set(self.workers)) < len(self.workers):
            raise FileError(
                f"job {self.name}: workers {list(self.workers)} must be one or more different ranks."
            )


@dataclass(frozen=True, kw_only=True)
class JobsFile:
    """Jobs on one cluster.

    Attributes:
        cluster: its file, beside this one.
        jobs: all that run.
    """

    __pydantic_config__: ClassVar = files.STRICT

    cluster: str
    jobs: tuple[JobEntry, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the network sees it.

    Attributes:
        name: to tell it apart.
        compute_s: of a step.
        ready_s: from the start of a step, when its exchange may begin; at most `compute_s`.
        bytes_by_link: that one exchange moves over each direction of each link, by its number.
        rates: of every direction, in bytes per second.
        start_s: when it begins.
        workers: ranks that it runs on.
        exchange_bytes: that they average.
    """

    name: str
    compute_s: float
    ready_s: float
    bytes_by_link: dict[int, float]
    rates: tuple[float, ...] = field(repr=False)
    start_s: float = 0.0
    workers: tuple[int, ...] = ()
    exchange_bytes: int = 0

    @cached_property
    def wire_s(self) -> float:
        """What an exchange takes when nobody else is there: its busiest link decides."""
        return max((size / self.rates[link] for link, size in self.bytes_by_link.items()), default=0.0)

    @cached_property
    def alone_s(self) -> float:
        """A step when nobody else is there."""
        return max(self.compute_s, self.ready_s + self.wire_s)

    @cached_property
    def intensity(self) -> float:
        """Compute per second of communication on the busiest link, all workers': Crux' I = W/t."""
        return self.compute_s * max(1, len(self.workers)) / self.wire_s if self.wire_s else float("inf")


def read_jobs(path: str | pathlib.Path) -> tuple[list[Job], Cluster]:
    """Reads a jobs file, and the files that it names, and builds its jobs.

    Raises:
        FileError: a field that is wrong, a job that does not fit, or two jobs on one worker.
        PlanError: a plan without an exchange that can be told in advance.
    """
    path = pathlib.Path(path)
    told = files.read(path, JobsFile)
    cluster = Cluster.read(path.parent / told.cluster)
    names = [entry.name for entry in told.jobs]
    if not names or len(set(names)) < len(names):
        raise FileError(f"{path}: jobs {names} must be one or more of different names.")
    _require_places(told.jobs, cluster)
    return [_build(entry, cluster, path.parent) for entry in told.jobs], cluster


def _require_places(entries: Sequence[JobEntry], cluster: Cluster) -> None:
    taken: dict[int, str] = {}
    for entry in entries:
        if outside := [rank for rank in entry.workers if not 0 <= rank < cluster.workers]:
            raise FileError(
                f"job {entry.name} does not fit: worker {outside[0]} is none of the cluster's {cluster.workers} "
                f"(0 to {cluster.workers - 1})."
            )
        for rank in entry.workers:
            if rank in taken:
                raise FileError(
                    f"jobs {taken[rank]} and {entry.name} both claim worker {rank}; a device trains one worker: place "
                    "them apart."
                )
            taken[rank] = entry.name


def _build(entry: JobEntry, cluster: Cluster, folder: pathlib.Path) -> Job:
    if entry.profile is not None:
        profile = Profile.read(folder / entry.profile)
        compute_s, itemsize = profile.compute_s, profile.parameters[0].itemsize
        first_s = min((p.ready_s for p in profile.parameters), default=0.0)
        ready_s, size = profile.forward_s + first_s, profile.num_bytes
    else:
        assert entry.compute_s is not None
        assert entry.exchange_bytes is not None
        compute_s, ready_s, size = entry.compute_s, entry.compute_s, entry.exchange_bytes
        itemsize = ITEM_BYTES
    job = Job(
        name=entry.name,
        compute_s=compute_s,
        ready_s=min(compute_s, entry.ready_s if entry.ready_s is not None else ready_s),
        bytes_by_link=link_bytes(entry, entry.exchange_bytes or size, cluster, itemsize),
        rates=wiring_of(cluster).rates,
        start_s=entry.start_s,
        workers=entry.workers,
        exchange_bytes=entry.exchange_bytes or size,
    )
    if not job.alone_s:
        raise FileError(
            f"job {entry.name}: its steps take no time: it neither computes nor exchanges anything."
        )
    return job


def link_bytes(
    entry: JobEntry, num_bytes: int, cluster: Cluster, itemsize: int = ITEM_BYTES
) -> dict[int, float]:
    """Returns what one exchange of a job moves over each direction of each link.

    Args:
        entry: the job.
        num_bytes: that its workers average.
        cluster: that it runs on.
        itemsize: bytes of each value.

    Raises:
        PlanError: a plan that is no all-reduce of one codec's messages in every step.
    """
    plan = Plan.parse(entry.plan)
    codec = plan.compression[0]
    if not isinstance(plan.architecture, AllReduce) or not isinstance(codec, Codec):
        raise PlanError(
            f"job {entry.name}: {plan} is no all-reduce of messages; jobs are predicted for those only."
        )
    if not plan.sync.is_bulk:
        raise PlanError(
            f"job {entry.name}: a step under {plan.sync} need not wait for an exchange of its own, and jobs are "
            "predicted whose steps do. Write a whole round as one step: its compute_s, its exchange by a plan of bsp."
        )
    n = len(entry.workers)
    if n == 1:
        return {}
    numel = num_bytes // itemsize
    told = AllReduce("ring") if plan.architecture.by in ("auto", "native") else plan.architecture
    summed = codec if codec.combine != "none" else Identity()
    program = told.program_for(summed, numel, itemsize, Setting(num_ranks=n))
    wiring, loads = wiring_of(cluster), Counter[int]()
    # A program that gathers moves whole messages; any other its share of one.
    message = codec.wire_bytes(numel, itemsize) if program.gathers else None
    sizes = [codec.wire_bytes(size, itemsize) for size in program.chunk_sizes(numel)]
    for t in program.transfers:
        for link in wiring.route(entry.workers[t.src], entry.workers[t.dst]):
            loads[link] += message if message is not None else sizes[t.chunk]
    return {link: float(size) for link, size in loads.items()}
