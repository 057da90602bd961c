"""What carries messages: a program among so many workers, as counts and as a fit, whoever built it."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from tightwire import architecture as architectures
from tightwire.architecture import AllReduce, Architecture, Program, Setting, Wiring
from tightwire.architecture.allreduce.switched import SWITCHED
from tightwire.architecture.allreduce.traffic import predict_bytes
from tightwire.cluster import PRIOR_RESIDUAL, Cluster, Fit, LinkGraph, nccl
from tightwire.compression import Codec, Identity
from tightwire.errors import ProgramError
from tightwire.simulate import switched
from tightwire.simulate.counts import CLOSED_FORMS, MAX_BUILT, ProgramCounts, busiest_rank, count, counts_of
from tightwire.simulate.flows import fit_on

# A message that is sent, or comes in, beside others costs its overhead, as a share of a latency (the o of LogP, Culler
# et al. 1993): about 5 µs of TCP's 50. Incast that overflows a switch costs more; no formula knows when.
GAP = 0.1


class Collective:
    """A program among so many workers.

    Attributes:
        name: of the program, as fits name it.
        workers: how many.
        program: its transfers; None where it is too large to be built, and a closed form stands for it.
        counts: what its busiest worker does.
        busiest: that worker's rank.
    """

    def __init__(self, name: str, workers: int, program: Program | None) -> None:
        self.name, self.workers, self.program = name, workers, program
        self.is_switched = name == SWITCHED and workers > 1
        if self.is_switched:
            self.counts: ProgramCounts = switched.COUNTS
        else:
            self.counts = count(program) if program and workers > 1 else counts_of(name, workers)
        self.busiest = busiest_rank(program) if program and workers > 1 else 0
        self._on_links: dict[LinkGraph, Fit] = {}
        self._sent: dict[tuple[Codec, int, int], int] = {}

    def across_share(self, zones: Sequence[int]) -> float:
        """Returns what all workers together send from zone to zone, over the size of a message of the whole buffer.

        Where the program is too large to be built, as if every pair of workers exchanged equally much; a ring's
        neighbours sit in one zone but for one pair per zone.

        Args:
            zones: of every rank.
        """
        if self.workers == 1:
            return 0.0
        if self.program is not None:
            crossing = sum(zones[t.src] != zones[t.dst] for t in self.program.transfers)
            return crossing / self.counts.chunks
        each = self.counts.sends / self.counts.chunks
        if self.name in ("ring", "native"):
            return each * sum(a != b for a, b in itertools.pairwise((*zones, zones[0])))
        return each * self.workers * pairs_apart(zones)

    @property
    def _at_once(self) -> int:
        """How many messages the busiest worker sends beside another one, as to all owners of a parameter server."""
        return max(0, self.counts.messages - self.counts.steps)

    def sent_bytes(self, codec: Codec, numel: int, itemsize: int) -> int:
        """Returns the payload bytes that the busiest worker (the first of several) sends for one bucket.

        Exact where the program is built; else chunks are taken to be equal.
        """
        if self.workers == 1:
            return 0
        if self.is_switched:
            return switched.sent_bytes(codec, numel, self.workers)
        if self.program is None:
            return round(self.counts.sends * codec.wire_bytes(numel, itemsize) / self.counts.chunks)
        key = (codec, numel, itemsize)
        if key not in self._sent:
            self._sent[key] = predict_bytes(self.program, codec, numel, itemsize, self.busiest)
        return self._sent[key]

    def moved_bytes(self, codec: Codec, numel: int, itemsize: int) -> float:
        """Returns what the busier direction of the busiest line carries: what is sent, as a rule."""
        sent = self.sent_bytes(codec, numel, itemsize)
        return sent * switched.share_of_sent(codec) if self.is_switched else sent

    def fit(self, cluster: Cluster) -> Fit:
        """Returns how long it takes on a cluster: as measured, by the cluster's links, or by its α–β formula."""
        return cluster.fit(self.name) or self.prior(cluster)

    def prior(self, cluster: Cluster) -> Fit:
        """Returns how long it takes by the links, or by its formula: latency per step, bytes over the line."""
        if self.is_switched:
            return switched.prior(cluster, self.name)
        if (
            cluster.nccl is not None
            and (self.name, self.workers) == ("native", cluster.workers)
            and self.workers > 1
        ):
            return nccl.prior(cluster, cluster.nccl)
        if cluster.links is not None and self.program is not None and self.workers > 1:
            if cluster.links not in self._on_links:
                sent_share = self.counts.sends / self.counts.chunks
                self._on_links[cluster.links] = fit_on(self.program, cluster.links, sent_share)
            found = self._on_links[cluster.links]
            return nccl.over(found, cluster, cluster.nccl) if cluster.nccl else found
        return Fit(
            program=self.name,
            alpha_s=(self.counts.steps + GAP * self._at_once) * cluster.latency_s,
            beta_s_per_byte=1 / cluster.slowest_bytes_per_s,
            residual=PRIOR_RESIDUAL,
            source="prior",
        )


def pairs_apart(zones: Sequence[int]) -> float:
    """Returns which share of the pairs of different workers sit in different zones.

    >>> round(pairs_apart((0, 0, 1, 1)), 3)
    0.667
    """
    n = len(zones)
    together = sum(count * (count - 1) for count in Counter(zones).values())
    return 1 - together / (n * (n - 1)) if n > 1 else 0.0


@lru_cache(maxsize=1024)
def collective_of(
    architecture: Architecture,
    name: str,
    workers: int,
    workers_per_node: int = 0,
    wiring: Wiring | None = None,
) -> Collective:
    """Returns what carries an architecture's messages by one of its programs.

    Args:
        architecture: whose program.
        name: of the program.
        workers: how many.
        workers_per_node: consecutive ranks on one host; 0: nobody told.
        wiring: links and routes, for programs that are made for them.

    Raises:
        PlanError: no such program among so many workers.
        ProgramError: too many workers to build it, and no closed form stands for it.
    """
    if workers == 1:
        return Collective("ring", 1, None)
    if isinstance(architecture, AllReduce) and architecture.is_switched:
        return Collective(SWITCHED, workers, None)
    plain = isinstance(architecture, AllReduce) and not (architecture.shape or architecture.order)
    if plain and workers > MAX_BUILT and name in CLOSED_FORMS:
        return Collective(name, workers, None)
    if workers > MAX_PREDICTED:
        raise ProgramError(
            f"{architecture} among {workers} workers is too large to be predicted transfer by transfer; above "
            f"{MAX_PREDICTED}, {', '.join(CLOSED_FORMS)} can."
        )
    setting = Setting(num_ranks=workers, workers_per_node=workers_per_node, wiring=wiring)
    return Collective(name, workers, architecture.program_for(Identity(), 1, 4, setting))


# Programs of this many workers still build within a second.
MAX_PREDICTED = 256


def prior(program: str, cluster: Cluster) -> Fit:
    """Returns what an all-reduce by `program` takes where it was not measured.

    >>> round(prior("ring", Cluster.uniform(4, 1e8, 1e-4)).alpha_s, 9)
    0.0006
    """
    return by_name(program, cluster.workers).prior(cluster)


def as_native(cluster: Cluster, programs: Sequence[str]) -> Cluster:
    """Returns a cluster on which programs that were not timed go by what the library's own all-reduce took.

    The same line and the same processors move their bytes; a step more costs as many latencies more.

    >>> found = Fit(program="native", alpha_s=3e-3, beta_s_per_byte=1e-8, cpu_s_per_byte=1e-9)
    >>> timed = dataclasses.replace(Cluster.uniform(4, 1e8, 1e-4), fits=(found,))
    >>> gathered = as_native(timed, ["allgather"]).fit("allgather")
    >>> round(gathered.alpha_s, 6), gathered.cpu_s_per_byte
    (0.0015, 1e-09)

    Args:
        cluster: without a fit of `native`, it is returned as it is.
        programs: of an all-reduce.
    """
    native = cluster.fit("native")
    if native is None:
        return cluster
    per_latency = native.alpha_s / max(prior("native", cluster).alpha_s, 1e-9)
    more = [
        dataclasses.replace(
            native, program=name, alpha_s=per_latency * prior(name, cluster).alpha_s, lines=()
        )
        for name in programs
        if cluster.fit(name) is None
    ]
    return dataclasses.replace(cluster, fits=(*cluster.fits, *more))


def sent_bytes(program: str, codec: Codec, numel: int, itemsize: int, workers: int) -> int:
    """Returns the payload bytes that the busiest worker sends for one bucket of an all-reduce by `program`."""
    return by_name(program, workers).sent_bytes(codec, numel, itemsize)


@lru_cache(maxsize=1024)
def by_name(program: str, workers: int) -> Collective:
    """Returns an all-reduce's program in the shape that it takes unless told."""
    if workers == 1 or (workers > MAX_BUILT and program in CLOSED_FORMS):
        return Collective(program, workers, None)
    return Collective(program, workers, architectures.build(program, workers))
