"""A bucket's reducer: any codec over any program that can carry it, or a method with an exchange of its own."""

from __future__ import annotations

from tightwire.buckets import BucketLayout
from tightwire.collectives import Architecture, Runner
from tightwire.compression import Codec
from tightwire.reducers.reducer import Reducer
from tightwire.reducers.reduction import TAGS, Reduction
from tightwire.transport import Transport


def build_reducer(
    architecture: Architecture,
    sender: Codec | Reduction,
    transport: Transport,
    *,
    bucket: BucketLayout,
    number: int,
) -> Reducer:
    """Builds the reducer of one of several buckets.

    Args:
        architecture: says by which program messages of a codec travel; a reduction brings its own.
        sender: says what travels.
        transport: between the ranks.
        bucket: of which size and dtype.
        number: tells reducers over one transport apart; the same on every rank.
    """
    if isinstance(sender, Reduction):
        return sender.build(transport, bucket, tag=number * TAGS)
    return all_reducer(architecture, sender, transport, bucket=bucket, tag=number * TAGS)


def all_reducer(
    architecture: Architecture, codec: Codec, transport: Transport, *, bucket: BucketLayout, tag: int
) -> Reducer:
    """Builds the reducer of one bucket, by an all-reduce.

    Args:
        architecture: says by which program.
        codec: says what travels.
        transport: between the ranks.
        bucket: of which size and dtype.
        tag: tells reducers over one transport apart; the same on every rank.
    """
    program = architecture.program(codec, transport.size)
    return Runner(program, transport, numel=bucket.numel, dtype=bucket.dtype, codec=codec, tag=tag)
