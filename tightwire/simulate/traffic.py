"""How many bytes the busiest worker sends, by the same definition that the runtime sends by."""

from __future__ import annotations

from functools import lru_cache

from tightwire import collectives
from tightwire.collectives.traffic import predict_bytes
from tightwire.compression.codec import Codec
from tightwire.simulate.shape import MAX_BUILT, busiest_rank, shape_of


@lru_cache(maxsize=65536)
def sent_bytes(program: str, codec: Codec, numel: int, itemsize: int, workers: int) -> int:
    """Returns the payload bytes that the busiest worker (the first of several) sends for one bucket.

    Exact up to `MAX_BUILT` workers; above, chunks are taken to be equal.
    """
    if workers == 1:
        return 0
    shape = shape_of(program, workers)
    if workers > MAX_BUILT:
        return round(shape.sends * codec.wire_bytes(numel, itemsize) / shape.chunks)
    built = collectives.build(program, workers)
    return predict_bytes(built, codec, numel, itemsize, busiest_rank(built))
