"""What every engine is made from: the transport, the routes of parameters, the tracer, the seed."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from tightwire.answers import CompressionAnswer, Sender
from tightwire.architecture import AllReduce, Architecture, Setting, Wiring
from tightwire.averaging import Averager, BucketAverager, all_reduce_averager, build_averager
from tightwire.averaging.bucket import Spared
from tightwire.averaging.half_allreduce import HalfAllReduce
from tightwire.averaging.method import TAGS
from tightwire.buckets import Bucket, BucketLayout, Slot, plan_layout
from tightwire.catalogue import parse_compression
from tightwire.compression import Codec, Identity, compile_kernels
from tightwire.compression.routing import compression_for
from tightwire.compression.stage import sender_of
from tightwire.devices import DeviceMemory, device_named, device_of
from tightwire.plan import Plan, Route
from tightwire.runtime.exchange import Exchange
from tightwire.runtime.groups import Sharing
from tightwire.runtime.membership import Membership, Roll
from tightwire.runtime.observed import Observed
from tightwire.runtime.overlap.touch import TouchListener
from tightwire.runtime.spans import RoundTimes
from tightwire.runtime.step import Optimizers
from tightwire.runtime.trace import Tracer, traced
from tightwire.schedule import Agenda, BucketFacts, Piece, TensorFacts
from tightwire.sync.roll import roll_fields
from tightwire.transport import Counting, Switch, Transport
from tightwire.ways import Over


@dataclass(frozen=True)
class PackedTensors:
    """Tensors as they travel.

    Attributes:
        buckets: that hold them.
        compressions: by bucket.
        agenda: in which pieces, and in which order, buckets move.
    """

    buckets: Sequence[Bucket]
    compressions: Sequence[tuple[CompressionAnswer, ...]]
    agenda: Agenda


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Builds exchanges over one transport.

    Attributes:
        transport: over all workers; counts what engines send.
        routing: which parameters are compressed otherwise than the plan says.
        tracer: where spans go.
        seed: of stochastic codecs, equal on all ranks.
        spared: bytes that were announced and turned out not to be needed.
        gradient_scale: by how much gradients are scaled at present (AMP); see `Round.scale`.
        model: the user's.
        optimizers: the user's.
        membership: who takes part.
        habits: is told what the loop does with gradients, while `auto` watches; else None.
        left: names of parameters and buffers that are left as they are on each rank.
        groups: what this rank shares with some ranks only; its names are in `left` too.
        awaits_means: whether gradients are looked at between backward and step, as AMP's scaler does.
        observed: what was measured in this run, for schedules that decide by it.
        outer: makes the outer optimizer of local methods from the agreed parameters; None: as the plan says.
        workers_per_node: consecutive ranks on one host, as the launcher says; 0 where it does not.
        wiring: links and routes between the workers, as a plan file tells them; None where nobody told.
        switch: that adds for the workers, as the launcher says; None where it does not.
        times: for how long each round of an exchange kept the line.
        costs: measured α in seconds and β in seconds per byte of programs, by name; the same on all ranks.
        leaves_by: how messages leave a device; see `attach`.
        held: by exchange, or engine of servers, the bytes of a device that it was built in.
        agree: from whether means are finite on this rank, says whether they are on those too that hold other shards of
            the model; see `Exchange`.
    """

    transport: Counting
    routing: Sequence[Route]
    tracer: Tracer
    seed: int
    gradient_scale: Callable[[], float | Tensor]
    spared: Spared = field(default_factory=Spared)
    model: nn.Module
    optimizers: Optimizers
    membership: Membership
    habits: TouchListener | None = None
    left: frozenset[str] = frozenset()
    groups: tuple[Sharing, ...] = ()
    awaits_means: bool = False
    observed: Observed = field(default_factory=Observed)
    outer: Callable[[list[Parameter]], Optimizer] | None = None
    workers_per_node: int = 0
    wiring: Wiring | None = None
    switch: Switch | None = None
    times: RoundTimes = field(default_factory=RoundTimes)
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    leaves_by: Over = "auto"
    held: MutableMapping[object, int] = field(default_factory=weakref.WeakKeyDictionary)
    agree: Callable[[bool], bool] = bool

    @property
    def what_the_switch_did(self) -> str:
        """For people; empty where no lane had a line to one."""
        account = self.switch.account if self.switch is not None else None
        return str(account) if account and (account.added or account.lost or account.refused) else ""

    def over(self, transport: Counting) -> RunContext:
        """Returns the same over another transport, such as a group, of which nothing was measured."""
        return dataclasses.replace(self, transport=transport, costs={}, wiring=None)

    def exactly(self) -> RunContext:
        """Returns the same without routes, for what must travel as it is."""
        return dataclasses.replace(self, routing=())

    def compression_of(self, name: str, tensor: Tensor, plan: Plan) -> tuple[CompressionAnswer, ...]:
        """Returns how a parameter travels: as its first matching route says, or the plan, if it is worth it."""
        routes = (r.compression for r in self.routing if fnmatch.fnmatchcase(name, r.match))
        compression = parse_compression(next(routes, plan.compression_text))
        return compression_for(compression, tensor.numel() * tensor.itemsize, tensor.dim())

    def exchange(self, tensors: Mapping[str, Tensor], plan: Plan) -> Exchange:
        """Builds buckets for tensors, and what averages them under `plan`. Every rank, in the same order.

        Args:
            tensors: by name, in the order in which a model registers them: gradients arrive in the reverse order.
        """
        device = device_of(tensors)
        places = {tensor.device for tensor in tensors.values()}
        held_bytes = device.memory(places).allocated_bytes
        packed, architecture = self._pack(tensors, plan), plan.architecture
        lanes = [
            architecture.connect(self.transport, self._setting(self.transport))
            for _ in range(packed.agenda.lanes)
        ]
        exchange = Exchange(
            [
                self._averager(packed, number, piece, architecture, lanes[number % len(lanes)])
                for number, piece in enumerate(packed.agenda.pieces)
            ],
            plan.schedule.pacer(packed.agenda),
            self.tracer,
            buckets=packed.buckets,
            agenda=packed.agenda,
            channels=lanes,
            device=device,
            agree=self.agree,
            times=self.times,
        )
        self.held[exchange] = device.memory(places).allocated_bytes - held_bytes
        return exchange

    @property
    def memory_added(self) -> DeviceMemory:
        """What living exchanges, or servers, hold of a device, and what messages cross of host memory."""
        places = {parameter.device for parameter in self.model.parameters()}
        held = device_named(next(iter(places))).memory(places)
        return dataclasses.replace(held, allocated_bytes=sum(self.held.values()))

    def _in_backward(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns tensors in the order in which backward was seen, or else is expected, to produce gradients."""
        ready_s = self.observed.ready_s
        expected = list(reversed(list(tensors)))
        return {name: tensors[name] for name in sorted(expected, key=lambda name: ready_s.get(name, 0.0))}

    def _pack(self, tensors: Mapping[str, Tensor], plan: Plan) -> PackedTensors:
        """Puts tensors into buckets, and these into an order, as the plan's schedule does with what is measured."""
        schedule, ready_s, wire = plan.schedule, self.observed.ready_s, self.observed.wire
        backward = self._in_backward(tensors)
        routes = {name: self.compression_of(name, tensor, plan) for name, tensor in backward.items()}
        facts = [
            TensorFacts(
                num_bytes=t.numel() * t.itemsize,
                kind=(str(t.dtype), str(t.device), *map(str, routes[name])),
                ready_s=ready_s.get(name, 0.0),
                is_exact=sender_of(routes[name]).lossless,
            )
            for name, t in backward.items()
        ]
        partition = schedule.partition(facts) if wire is None else schedule.partition(facts, wire)
        buckets = [Bucket(layout) for layout in plan_layout(backward, partition)]
        compressions = [routes[bucket.layout.slots[0].name] for bucket in buckets]
        agenda = schedule.agenda(
            [
                BucketFacts(
                    num_bytes=bucket.layout.num_bytes,
                    ready_s=max(facts[position].ready_s for position in positions),
                    divisible=len(compression) == 1 and isinstance(compression[0], Codec),
                )
                for bucket, positions, compression in zip(buckets, partition, compressions, strict=True)
            ],
            wire,
        )
        return PackedTensors(buckets, compressions, agenda)

    def _averager(
        self, packed: PackedTensors, number: int, piece: Piece, architecture: Architecture, channel: Transport
    ) -> BucketAverager:
        """Builds what moves the agenda's piece of a number."""
        part = part_of(packed.buckets[piece.bucket], piece)
        if piece.phase != "mean":
            half = HalfAllReduce(part, piece.phase, channel, tag=number * TAGS)
            return cast(BucketAverager, half)  # which it stands for
        build = functools.partial(self._build, architecture, channel, part.layout, number)
        return BucketAverager(
            part, packed.compressions[piece.bucket], build, workers=channel.size, spared=self.spared
        )

    def _build(
        self,
        architecture: Architecture,
        channel: Transport,
        layout: BucketLayout,
        number: int,
        sender: Sender,
    ) -> Averager:
        if not isinstance(sender, Codec):
            return build_averager(architecture, sender, channel, bucket=layout, number=number)
        compile_kernels(sender, layout.dtype, layout.device)  # now, not within the first step
        codec, setting = traced(sender, self.tracer), self._setting(channel)
        return build_averager(architecture, codec, channel, bucket=layout, number=number, setting=setting)

    def _setting(self, transport: Transport) -> Setting:
        return Setting(
            num_ranks=transport.size,
            workers_per_node=self.workers_per_node,
            wiring=self.wiring,
            switch=self.switch,
            costs=self.costs,
        )

    def roll(self, own: int) -> Roll:
        """Builds what calls the roll of rounds, on a channel of its own. Every rank, in the same order.

        Args:
            own: how many numbers of its own a round has.
        """
        channel = self.transport.channel()
        layout = plan_layout({"roll": torch.zeros(roll_fields(own))}, [[0]])[0]
        control = all_reduce_averager(
            AllReduce("recursive-doubling"), Identity(), channel, bucket=layout, tag=0
        )
        return Roll(self.membership, channel, control, own)


def part_of(bucket: Bucket, piece: Piece) -> Bucket:
    """Returns a piece of a bucket as a bucket: itself where it is whole, else one nameless slot in its memory."""
    if piece.num_bytes == bucket.layout.num_bytes:
        return bucket
    itemsize = bucket.layout.dtype.itemsize
    flat = bucket.flat[piece.start // itemsize : piece.stop // itemsize]
    slot = Slot(name="", shape=(flat.numel(),), stride=(1,), offset=0)
    return Bucket(dataclasses.replace(bucket.layout, slots=(slot,)), flat)
