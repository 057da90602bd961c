"""A bucket's averager: any codec over any program that can carry it, or a method with an exchange of its own."""

from __future__ import annotations

import logging

from tightwire.answers import Sender
from tightwire.architecture import AllReduce, Architecture, Runner, Setting
from tightwire.averaging._decoded import DecodedAverager
from tightwire.averaging.averager import Averager
from tightwire.averaging.hierarchical import HierarchicalAverager
from tightwire.averaging.in_network import InNetworkAverager
from tightwire.averaging.method import TAGS, AveragingMethod
from tightwire.averaging.on_host import OnHostAverager
from tightwire.buckets import BucketLayout
from tightwire.compression import Codec, Identity, check_before_use
from tightwire.devices import device_named
from tightwire.transport import Transport

logger = logging.getLogger(__name__)


def build_averager(
    architecture: Architecture,
    sender: Sender,
    transport: Transport,
    *,
    bucket: BucketLayout,
    number: int,
    setting: Setting | None = None,
) -> Averager:
    """Builds the averager of one of several buckets.

    Args:
        architecture: says by which program messages of a codec travel; an averaging method brings its own.
        sender: says what travels.
        transport: between the ranks.
        bucket: of which size and dtype.
        number: tells averagers over one transport apart; the same on every rank.
        setting: what is known of the workers; by default, how many.

    Raises:
        CodecError: a codec from outside this package breaks a law.
    """
    if isinstance(sender, AveragingMethod):
        if sender.on_host and not device_named(bucket.device).is_host:
            return OnHostAverager(sender, transport, bucket, tag=number * TAGS)
        return sender.build(transport, bucket, tag=number * TAGS)
    assert isinstance(sender, Codec), sender
    check_before_use(sender, bucket.dtype, bucket.device)
    return all_reduce_averager(
        architecture, sender, transport, bucket=bucket, tag=number * TAGS, setting=setting
    )


def all_reduce_averager(
    architecture: Architecture,
    codec: Codec,
    transport: Transport,
    *,
    bucket: BucketLayout,
    tag: int,
    setting: Setting | None = None,
) -> Averager:
    """Builds the averager of one bucket, by an all-reduce.

    Args:
        architecture: says by which program.
        codec: says what travels.
        transport: between the ranks.
        bucket: of which size and dtype.
        tag: tells averagers over one transport apart; the same on every rank.
        setting: what is known of the workers; by default, how many.

    Raises:
        PlanError: an architecture that must know more of the workers.
    """
    setting = setting or Setting(num_ranks=transport.size)
    numel, itemsize = bucket.numel, bucket.dtype.itemsize
    if isinstance(architecture, AllReduce):
        if architecture.is_switched and transport.size > 1:
            return InNetworkAverager(codec, transport, bucket, tag)
        if architecture.is_levelled and not codec.lossless and transport.size > 1:
            return HierarchicalAverager(architecture.nodes(setting), codec, transport, bucket, tag)
        if architecture.travels_decoded(codec, numel, itemsize, transport.size):
            program = architecture.program_for(Identity(), numel, itemsize, setting)
            exact = Runner(
                program,
                transport,
                numel=numel,
                dtype=bucket.dtype,
                codec=Identity(),
                tag=tag,
                device=bucket.device,
            )
            logger.info(
                "%s: gathered over %d workers its messages of %d elements would send more bytes than the values do; "
                "they travel decoded",
                codec, transport.size, numel,
            )  # fmt: skip
            return DecodedAverager(codec, exact, transport, bucket)
    program = architecture.program_for(codec, numel, itemsize, setting)
    return Runner(
        program, transport, numel=numel, dtype=bucket.dtype, codec=codec, tag=tag, device=bucket.device
    )
