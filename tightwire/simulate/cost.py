"""What one bucket costs: encoding, the program on this cluster's wire, decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from tightwire.answers import Sender
from tightwire.architecture import AllReduce, Architecture, Setting
from tightwire.architecture.allreduce.traffic import PIECE_BYTES
from tightwire.averaging import AveragingMethod
from tightwire.cluster import Cluster, Fit
from tightwire.cluster.wiring import wiring_up_to_scale
from tightwire.compression import Codec, Identity, Stage
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.simulate.collective import Collective, collective_of
from tightwire.simulate.sharing import DeviceSharing
from tightwire.sync.roll import roll_fields
from tightwire.ways import Over

# From this contention on, a communication thread takes its whole processor time from compute.
SATURATED = 1.5
# Input to work, work to sum, losses to leftover, sum to mean, the check.
LOSSY_PASSES = 5


@dataclass(frozen=True, kw_only=True)
class BucketCost:
    """One bucket's time on its worker's communication thread, by what it is spent on.

    Attributes:
        codec_s: encoding, decoding and passes over memory that no transfer hides.
        latency_s: the part of the program's time that does not depend on bytes.
        wire_s: the part that does.
        copy_s: what copies between a device and its host add to that.
        sent_bytes: payload that the busiest worker sends.
        stolen_s: compute time that it costs while both overlap, where workers share cores, or both share a device.
        across_bytes: payload that all workers together send from zone to zone; 0 where traffic has no price.
    """

    codec_s: float
    latency_s: float
    wire_s: float
    sent_bytes: int
    copy_s: float = 0.0
    stolen_s: float = 0.0
    across_bytes: float = 0.0

    @property
    def seconds(self) -> float:
        """The whole."""
        return self.codec_s + self.latency_s + self.wire_s + self.copy_s

    def __add__(self, other: BucketCost) -> BucketCost:
        """Returns one after the other."""
        return BucketCost(
            codec_s=self.codec_s + other.codec_s,
            latency_s=self.latency_s + other.latency_s,
            wire_s=self.wire_s + other.wire_s,
            sent_bytes=self.sent_bytes + other.sent_bytes,
            copy_s=self.copy_s + other.copy_s,
            stolen_s=self.stolen_s + other.stolen_s,
            across_bytes=self.across_bytes + other.across_bytes,
        )


def total(costs: Iterable[BucketCost]) -> BucketCost:
    """Returns all of them, one after the other."""
    rows = [
        (c.codec_s, c.latency_s, c.wire_s, c.sent_bytes, c.copy_s, c.stolen_s, c.across_bytes) for c in costs
    ]
    if not rows:
        return FREE
    codec_s, latency_s, wire_s, sent_bytes, copy_s, stolen_s, across_bytes = map(sum, zip(*rows, strict=True))
    return BucketCost(
        codec_s=codec_s,
        latency_s=latency_s,
        wire_s=wire_s,
        sent_bytes=int(sent_bytes),
        copy_s=copy_s,
        stolen_s=stolen_s,
        across_bytes=across_bytes,
    )


FREE = BucketCost(codec_s=0.0, latency_s=0.0, wire_s=0.0, sent_bytes=0)
# Methods that talk while they compress have two exchanges for a bucket: factors, or values and their choice.
REDUCTION_EXCHANGES = 2


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Prices buckets on one cluster.

    Attributes:
        architecture: by which buckets travel.
        profile: what codecs and passes over memory take.
        cluster: the wire.
    """

    architecture: Architecture
    profile: Profile
    cluster: Cluster
    _known: dict[tuple[object, ...], BucketCost] = field(default_factory=dict, repr=False, compare=False)

    def bucket(
        self, numel: int, itemsize: int, sender: Sender, shapes: Sequence[tuple[int, ...]] = ()
    ) -> BucketCost:
        """Returns the cost of one bucket.

        Args:
            numel: its elements.
            itemsize: bytes of each.
            sender: the codec or reduction that it goes by.
            shapes: of its tensors, for reductions; one flat tensor where they are not known.
        """
        key = (numel, itemsize, sender, tuple(shapes))
        if key not in self._known:
            self._known[key] = self._price(numel, itemsize, sender, shapes or ((numel,),))
        return self._known[key]

    def collective_for(self, codec: Codec, numel: int, itemsize: int) -> Collective:
        """Returns what carries one bucket, by the same definition that the runtime goes by."""
        architecture, workers = self.architecture, self.cluster.workers
        if not isinstance(architecture, AllReduce):
            return collective_of(architecture, architecture.name, workers, self.cluster.workers_per_node)
        setting = Setting(num_ranks=workers, costs=self.cluster.costs)
        name = architecture.choose(codec, numel, itemsize, setting)
        told = AllReduce(name) if architecture.by == "auto" else architecture
        wiring = wiring_up_to_scale(self.cluster) if told.is_made and workers > 1 else None
        return collective_of(told, name, workers, self.cluster.workers_per_node, wiring)

    @cached_property
    def control(self) -> BucketCost:
        """The small message in which ranks count who used which parameter, one float32 each, beside who is there."""
        return self.message(len(self.profile.parameters))

    def message(self, own: int) -> BucketCost:
        """Returns the cost of the small message by which ranks agree on a round; bytes do not slow it down.

        Args:
            own: numbers of the round's own.
        """
        name = "recursive-doubling"
        collective = collective_of(AllReduce(name), name, self.cluster.workers)
        sent = collective.sent_bytes(Identity(), roll_fields(own), 4)
        latency_s = collective.fit(self.cluster).at(sent).alpha_s
        return BucketCost(codec_s=0.0, latency_s=latency_s, wire_s=0.0, sent_bytes=sent)

    def _price(
        self, numel: int, itemsize: int, sender: Sender, shapes: Sequence[tuple[int, ...]]
    ) -> BucketCost:
        if isinstance(sender, AveragingMethod):
            return self._reduction(numel, itemsize, sender, shapes)
        assert isinstance(sender, Codec), sender
        if isinstance(self.architecture, AllReduce):
            if self.architecture.is_levelled and not sender.lossless:
                return self._by_levels(numel, itemsize, sender)
            if self.architecture.travels_decoded(sender, numel, itemsize, self.cluster.workers):
                return self._decoded(numel, itemsize, sender)
        return self._leg(self.collective_for(sender, numel, itemsize), self.cluster, numel, itemsize, sender)

    def _leg(
        self, collective: Collective, cluster: Cluster, numel: int, itemsize: int, codec: Codec
    ) -> BucketCost:
        is_whole = cluster is self.cluster
        sharing = self._sharing if is_whole else DeviceSharing(profile=self.profile, cluster=cluster)
        fit = collective.fit(sharing.wire_of(collective))
        sent = collective.sent_bytes(codec, numel, itemsize)
        line = fit.at(sent)
        wire_s = line.beta_s_per_byte * collective.moved_bytes(codec, numel, itemsize)
        codec_s = self._codec_s(collective, codec, numel)
        hidden_s = self._hidden_s(collective, numel * itemsize, codec_s, wire_s)
        passes_s = self._passes_s(codec.lossless, numel)
        copy_s = sharing.copy_s(collective, codec, numel, itemsize, sent, wire_s)
        on_device_s = sharing.stolen_s(codec_s + passes_s, line.alpha_s + wire_s)
        return BucketCost(
            codec_s=codec_s - hidden_s + passes_s,
            latency_s=line.alpha_s * self.profile.contention,  # who waits for a core answers late
            wire_s=wire_s,
            sent_bytes=sent,
            copy_s=copy_s,
            stolen_s=self._stolen_s(codec_s + passes_s, fit.cpu_s_per_byte * sent) + on_device_s,
            across_bytes=_across(collective, cluster, codec.wire_bytes(numel, itemsize)),
        )

    def _decoded(self, numel: int, itemsize: int, codec: Codec) -> BucketCost:
        """Values that messages stand for: encoded and decoded once, and added up exactly."""
        leg = self._leg(
            self.collective_for(Identity(), numel, itemsize), self.cluster, numel, itemsize, Identity()
        )
        cost = self.profile.codec_cost(codec)
        codec_s = cost.fixed_s + numel * (cost.encode_s_per_element + cost.decode_s_per_element)
        work_s = codec_s + self._passes_s(False, numel) - self._passes_s(True, numel)
        stolen_s = self._stolen_s(work_s, 0.0) + self._sharing.stolen_s(work_s, 0.0)
        return leg + dataclasses.replace(FREE, codec_s=work_s, stolen_s=stolen_s)

    def _by_levels(self, numel: int, itemsize: int, codec: Codec) -> BucketCost:
        """Dense inside nodes, through the codec across them: the runtime's three movements of a shard each."""
        inside = self._workers_inside
        shard = -(-numel // inside)
        node, across = node_of(self.cluster, inside), across_of(self.cluster, inside)
        legs = []
        between = AllReduce().program_name(codec, across.workers, shard, itemsize)
        for name, cluster, size, sender in (
            ("ring", node, numel, Identity()),  # reduce-scatter and all-gather inside are a ring's two halves
            (between, across, shard, codec),
        ):
            collective = collective_of(AllReduce(name), name, cluster.workers)
            legs.append(self._leg(collective, cluster, size, itemsize, sender))
        # Every place of a node exchanges a shard of its own with its likes.
        paid = inside * _across(collective, self.cluster, codec.wire_bytes(shard, itemsize), every=inside)
        return dataclasses.replace(total(legs), across_bytes=paid)

    @cached_property
    def _sharing(self) -> DeviceSharing:
        return DeviceSharing(profile=self.profile, cluster=self.cluster)

    @property
    def _workers_inside(self) -> int:
        assert isinstance(self.architecture, AllReduce)
        if self.architecture.shape:
            return int(self.architecture.shape.rpartition("x")[2])
        if self.cluster.workers_per_node < 2:
            raise PlanError(
                f"{self.architecture} compresses across nodes alone, and the cluster does not say who shares a node: "
                f"give it levels, or a shape, such as allreduce:hierarchical,shape=2x{self.cluster.workers // 2}."
            )
        return self.cluster.workers_per_node

    def _reduction(
        self, numel: int, itemsize: int, sender: AveragingMethod, shapes: Sequence[tuple[int, ...]]
    ) -> BucketCost:
        """A method with an exchange of its own: its exact bytes at the ring's rate, its latency per exchange."""
        workers = self.cluster.workers
        if workers == 1:
            return FREE
        sent = busiest_bytes(sender, tuple(shapes), itemsize, workers)
        dense = self.collective_for(Identity(), numel, itemsize)
        fit = dense.fit(self._sharing.wire_of(dense))
        line = fit.at(sent)
        wire_s = line.beta_s_per_byte * sent
        cost = self.profile.codec_cost(sender)
        codec_s = cost.fixed_s + numel * (cost.encode_s_per_element + cost.decode_s_per_element)
        work_s = codec_s + self._passes_s(sender.lossless, numel)
        return BucketCost(
            codec_s=work_s,
            latency_s=REDUCTION_EXCHANGES * line.alpha_s * self.profile.contention,
            wire_s=wire_s,
            sent_bytes=sent,
            copy_s=self._sharing.copy_s(dense, Identity(), sent // itemsize, itemsize, sent, wire_s),
            stolen_s=self._stolen_s(work_s, fit.cpu_s_per_byte * sent)
            + self._sharing.stolen_s(work_s, line.alpha_s + wire_s),
            across_bytes=_across(
                dense, self.cluster, sent * dense.counts.chunks / max(1, dense.counts.sends)
            ),
        )

    def _codec_s(self, collective: Collective, codec: Codec, numel: int) -> float:
        if codec.lossless or collective.workers == 1:
            return 0.0
        cost, counts = self.profile.codec_cost(codec), collective.counts
        per_chunk_s = counts.encodes * cost.encode_s_per_element + counts.decodes * cost.decode_s_per_element
        calls = max(counts.encodes, counts.decodes)
        return per_chunk_s * numel / counts.chunks + cost.fixed_s * calls

    def _hidden_s(self, collective: Collective, num_bytes: int, codec_s: float, wire_s: float) -> float:
        """Returns what overlaps: the runner encodes one piece of a chunk while the piece before it travels."""
        if collective.name == "native" or collective.counts.chunks == 1:
            return 0.0
        pieces = max(1, round(num_bytes / collective.counts.chunks / PIECE_BYTES))
        return min(codec_s, wire_s) * (1 - 1 / pieces)

    def _stolen_s(self, work_s: float, moving_s: float) -> float:
        """Returns what compute loses to the communication thread: nothing where there are cores to spare.

        Args:
            work_s: codecs and passes, timed under the profile's contention.
            moving_s: processor time of the transfer, timed without.
        """
        contention = self.profile.contention
        saturation = min(1.0, (contention - 1.0) / (SATURATED - 1.0))
        return saturation * (work_s + moving_s * contention)

    def _passes_s(self, lossless: bool, numel: int) -> float:
        """Returns the time of checking the mean, and of bringing lossy work into memory of its own and back."""
        passes = 1 if lossless else LOSSY_PASSES
        return passes * numel * self.profile.pass_s_per_element


def _across(collective: Collective, cluster: Cluster, message_bytes: float, every: int = 1) -> float:
    """Returns what leaves zones, where somebody pays for it; of every so many ranks, one takes part."""
    if not cluster.charges_traffic:
        return 0.0
    return collective.across_share(cluster.zones[::every]) * message_bytes


def costs_of(plan: Plan, profile: Profile, cluster: Cluster) -> Costs:
    """Returns what prices a plan's buckets.

    Raises:
        PlanError: a compression that cannot be predicted.
    """
    for stage in plan.compression[1:]:
        # A stage may replace the sender in some rounds for ever, and then a mean over rounds says little.
        if isinstance(stage, Stage) and stage.sender_at(plan.sender, FAR_ROUND) != plan.sender:
            raise PlanError(
                f"{plan}: {stage} cannot be predicted yet: its rounds differ for ever. Predict the plan without it."
            )
    return Costs(architecture=plan.architecture, profile=profile, cluster=cluster)


# A round after every warm-up; a multiple of every small period, so that periodic dense rounds show.
FAR_ROUND = 720_720_000


def node_of(cluster: Cluster, workers: int) -> Cluster:
    """Returns one node of a cluster: its workers on lines of their own, NVLink's where NCCL moves what is inside."""
    level = cluster.levels[0] if cluster.levels and cluster.levels[0].workers == workers else None
    return Cluster(
        workers=workers,
        bandwidth_bytes_per_s=level.bandwidth_bytes_per_s if level else cluster.bandwidth_bytes_per_s,
        latency_s=level.latency_s if level else cluster.latency_s,
        over="nccl" if cluster.over == "nccl-inside" else cluster.over,
    )


def across_of(cluster: Cluster, workers_inside: int) -> Cluster:
    """Returns what joins the nodes: one worker of each, all of a node's sharing its line."""
    nodes = cluster.workers // workers_inside
    outer = cluster.levels[1].bandwidth_bytes_per_s if len(cluster.levels) > 1 else None
    share = outer / workers_inside if outer else cluster.bandwidth_bytes_per_s
    over: Over = "pinned" if cluster.over == "nccl-inside" else cluster.over
    return Cluster(workers=nodes, bandwidth_bytes_per_s=share, latency_s=cluster.latency_s, over=over)


def fit_of(plan: Plan, profile: Profile, cluster: Cluster) -> Fit:
    """Returns the fit of what carries most of a plan's bytes: how uncertain its time on the wire is."""
    costs, sender = costs_of(plan, profile, cluster), plan.compression[0]
    codec = sender if isinstance(sender, Codec) else Identity()
    return costs.collective_for(codec, profile.num_bytes // 4, 4).fit(cluster)


# Above this many workers, the programs that methods with an exchange of their own run are too large to be counted.
MAX_COUNTED = 64


@lru_cache(maxsize=4096)
def busiest_bytes(
    sender: AveragingMethod, shapes: tuple[tuple[int, ...], ...], itemsize: int, workers: int
) -> int:
    """Returns the payload bytes of the busiest worker under a method with an exchange of its own.

    Exact up to `MAX_COUNTED` workers. Beyond, continued from 8, 16, 32 and 64 workers: what a worker sends in a ring, a
    butterfly or an all-gather is a sum of 1, 1/n, log₂ n and n, whose four weights those four counts fix.
    """
    if workers <= MAX_COUNTED:
        return max(sender.expected_bytes(shapes, itemsize, workers, rank) for rank in _sampled(workers))
    sizes = np.array([8.0, 16.0, 32.0, 64.0])
    counted = [
        max(sender.expected_bytes(shapes, itemsize, int(n), rank) for rank in (0, int(n) - 1)) for n in sizes
    ]
    weights = np.linalg.solve(_growth(sizes), np.array(counted, dtype=float))
    return max(counted[-1] // 2, round(float((_growth(np.array([float(workers)])) @ weights)[0])))


def _growth(workers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones_like(workers), 1 / workers, np.log2(workers), workers], axis=1)


def _sampled(workers: int) -> range:
    """Returns the ranks whose bytes are looked at: all of a few, a spread of many."""
    return range(0, workers, max(1, workers // 16))
