"""Averaging by an all-reduce: any codec over any program that can carry it."""

from __future__ import annotations

from tightwire.buckets import BucketLayout
from tightwire.collectives import AllReduce, Runner, build
from tightwire.compression import Codec
from tightwire.reducers.reducer import Reducer
from tightwire.transport import Transport


def all_reducer(
    architecture: AllReduce, codec: Codec, transport: Transport, *, bucket: BucketLayout, tag: int
) -> Reducer:
    """Builds the reducer of one bucket.

    Args:
        architecture: says by which program.
        codec: says what travels.
        transport: between the ranks.
        bucket: of which size and dtype.
        tag: tells reducers over one transport apart; the same on every rank.
    """
    program = build(architecture.program_name(codec), transport.size)
    return Runner(program, transport, numel=bucket.numel, dtype=bucket.dtype, codec=codec, tag=tag)
