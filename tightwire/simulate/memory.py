"""What a plan adds to the memory of a worker's device, before anything runs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tightwire.architecture import AllReduce, ParameterServer
from tightwire.architecture.allreduce.traffic import ALIGN_BYTES, PIECE_BYTES, RECEIVES_AHEAD, pieces_of
from tightwire.cluster import Cluster
from tightwire.compression.codec import Codec
from tightwire.compression.routing import compression_for
from tightwire.compression.stage import Stage
from tightwire.simulate.exchange import SimulatedExchange
from tightwire.sync import Served

if TYPE_CHECKING:
    from tightwire.answers import CompressionAnswer
    from tightwire.plan import Plan
    from tightwire.profile import Profile
    from tightwire.profile.values import ParameterProfile

FLOAT_BYTES = 4


def added_bytes(plan: Plan, profile: Profile, cluster: Cluster) -> int | None:
    """Returns the device memory that exchanges by all-reduce, or servers, hold beside the model and its optimizer.

    Buckets, of which gradients are views; a lossy message's input, which keeps what is left over; what stages remember;
    messages, which a gather holds of all workers; and in each lane the pieces of sums that are about to land, of the
    largest bucket. Left out is what kernels need meanwhile. Of servers see `served_bytes`.

    Args:
        plan: whose averages are made on the device, or whose servers keep their shards there.
        profile: of the model.
        cluster: of those who take part.

    Returns:
        Bytes; None where a method holds more than it says, or averages are made in host memory.
    """
    if isinstance(plan.architecture, ParameterServer) and plan.architecture.on_device:
        return served_bytes(plan, profile, cluster)
    if not isinstance(plan.architecture, AllReduce):
        return None
    total = 0
    for parameter in profile.parameters:
        sender, copies = _sending(plan, parameter)
        if not isinstance(sender, Codec):
            return None
        total += _bucket_bytes(parameter, sender, copies)
        if not (sender.lossless and sender.sums_as == ""):
            messages = cluster.workers if sender.combine == "none" else 1
            total += messages * sender.wire_bytes(parameter.numel, parameter.itemsize)
    return total + landing_bytes(plan, profile, cluster)


def served_bytes(plan: Plan, profile: Profile, cluster: Cluster) -> int | None:
    """Returns what servers that keep their shards on devices add to the device that holds most.

    A worker holds its gradients with what their codec needs, the parameters that it was sent last, a push, and room for
    exact parameters from other ranks. An owner holds of its shard the parameters, the sums and what all last ended
    with; for each worker a pull, a push if that comes from another rank, and under a codec, or where delays are
    compensated for, the parameters that the worker has. The optimizer's state is the user's own, elsewhere: workers
    hold none. Left out is what kernels need meanwhile.

    Args:
        plan: whose servers keep their shards on devices.
        profile: of the model.
        cluster: of workers and servers.

    Returns:
        Bytes; None where workers send changes, and so hold more.
    """
    architecture, sync = plan.architecture, plan.sync
    assert isinstance(architecture, ParameterServer), architecture
    if isinstance(sync, Served) and sync.sends_changes:
        return None
    roles = architecture.roles(cluster.workers)
    owners = roles.share_out([parameter.numel for parameter in profile.parameters])
    follows = isinstance(sync, Served) and sync.compensation > 0
    held: Counter[int] = Counter()
    for parameter, owner in zip(profile.parameters, owners, strict=True):
        sender, copies = _sending(plan, parameter)
        if not isinstance(sender, Codec):
            return None
        num_bytes = parameter.numel * parameter.itemsize
        message = sender.wire_bytes(parameter.numel, parameter.itemsize)
        others = len(roles.workers) - (owner in roles.workers)
        held[owner] += 3 * num_bytes + (len(roles.workers) + others) * message
        if follows or sender.name != "none":
            held[owner] += len(roles.workers) * num_bytes
        for worker in roles.workers:
            held[worker] += _bucket_bytes(parameter, sender, copies) + num_bytes + message
            held[worker] += num_bytes if worker != owner else 0
    return max(held.values())


def _sending(plan: Plan, parameter: ParameterProfile) -> tuple[CompressionAnswer, int]:
    """Returns what sends a parameter's gradient, and how many copies of it the stages around that remember."""
    num_bytes = parameter.numel * parameter.itemsize
    sender, *others = compression_for(plan.compression, num_bytes, max(len(parameter.shape), 1))
    return sender, sum(stage.copies for stage in others if isinstance(stage, Stage))


def _bucket_bytes(parameter: ParameterProfile, sender: Codec, copies: int) -> int:
    """Returns what a gradient takes in its bucket, and what its averager keeps beside it, messages left out."""
    num_bytes = parameter.numel * parameter.itemsize
    wide_bytes = parameter.numel * max(parameter.itemsize, FLOAT_BYTES)
    total = num_bytes + copies * wide_bytes
    if copies or not sender.lossless:
        total += wide_bytes if copies else num_bytes
    if copies and wide_bytes > num_bytes:
        total += wide_bytes + num_bytes  # the mean as stages see it, and what travels
    return total


def landing_bytes(plan: Plan, profile: Profile, cluster: Cluster) -> int:
    """Returns what is kept for pieces that are about to land: in each lane, as much as its largest bucket needs."""
    if cluster.workers == 1:
        return 0
    exchange = SimulatedExchange(plan=plan, profile=profile, cluster=cluster)
    by_lane: Counter[int] = Counter()
    for place, piece in enumerate(exchange.agenda.pieces):
        itemsize = exchange.buckets[piece.bucket][0].itemsize
        codec = exchange.sender_of(piece.bucket)
        assert isinstance(codec, Codec), codec
        lane = place % exchange.agenda.lanes
        needs = _landing_of(exchange, codec, piece.num_bytes // itemsize, itemsize)
        by_lane[lane] = max(by_lane[lane], needs)
    return sum(by_lane.values())


def _landing_of(exchange: SimulatedExchange, codec: Codec, numel: int, itemsize: int) -> int:
    """Returns what one bucket's runner needs; nothing where messages are gathered, or a backend sums them."""
    collective = exchange.costs.collective_for(codec, numel, itemsize)
    if codec.combine == "none" or collective.name == "native" or not numel:
        return 0
    is_dense = codec.lossless and codec.sums_as == ""
    program = collective.program
    if program is None:
        # Too large to be built: rings, whose chunks are equal, and more pieces than are awaited.
        size, slots = min(PIECE_BYTES // 4 // itemsize, -(-numel // collective.workers)), RECEIVES_AHEAD
    else:
        pieces = pieces_of(program, codec, numel, itemsize, PIECE_BYTES)
        receives = program.receives(collective.busiest)
        size = max(pieces.sizes, default=0)
        if exchange.cluster.over == "pinned":
            slots = min(RECEIVES_AHEAD, sum(len(pieces.of_chunk[t.chunk]) for t in receives))
        else:  # by NCCL, where what starts together ends together: a step's pieces of one place in their chunks
            slots = max(Counter(t.step for t in receives).values(), default=0)
    slot_bytes = size * itemsize if is_dense else codec.wire_bytes(size, itemsize)
    return slots * -(-slot_bytes // ALIGN_BYTES) * ALIGN_BYTES
