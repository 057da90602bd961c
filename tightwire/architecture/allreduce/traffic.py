"""What travels: chunks cut into pieces, and their bytes, by one definition for runner and predictions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tightwire.architecture.allreduce.program import Program, split
from tightwire.compression.codec import Codec
from tightwire.transport.base import native_bytes

PIECE_BYTES = 1024 * 1024
# Where messages begin in memory: any dtype may.
ALIGN_BYTES = 64
# Pieces that may be on their way to a rank at once, as far as it has asked for them. Measured at 1 Gb/s, 16 MB, pieces
# of 256 KB, eight ranks: with 8, halving-doubling and direct, which talk to several partners at once, took 10 to 13 %
# more time, and with 16 up to 7 %; a ring is as fast with 8.
RECEIVES_AHEAD = 32
PIECE_MULTIPLE = 1024  # elements; codecs work in blocks, and this is a whole number of them

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
}


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """How the memory of a collective is cut.

    Attributes:
        sizes: of each piece, in elements of the buffer, or in bytes of the messages where a program gathers;
            none is empty, and together they are the memory, in order.
        of_chunk: the pieces of each chunk.
    """

    sizes: tuple[int, ...]
    of_chunk: tuple[range, ...]


def cut(chunk_sizes: Sequence[int], itemsize: int, piece_bytes: int) -> Pieces:
    """Cuts chunks into nearly equal pieces of about `piece_bytes` at most; an empty chunk has none.

    A chunk of more than half a piece is halved: with one piece, nothing would overlap.

    >>> cut((5000, 0, 2000), 4, 8192).sizes
    (1024, 2048, 1928, 1024, 976)
    """
    kept = [_cut_one(size, itemsize, piece_bytes) for size in chunk_sizes]
    starts = itertools.accumulate(map(len, kept), initial=0)
    return Pieces(
        sizes=tuple(itertools.chain(*kept)),
        of_chunk=tuple(range(start, start + len(sizes)) for start, sizes in zip(starts, kept, strict=False)),
    )


def _cut_one(size: int, itemsize: int, piece_bytes: int) -> tuple[int, ...]:
    return tuple(filter(None, split(size, num_pieces(size * itemsize, piece_bytes), PIECE_MULTIPLE)))


def num_pieces(num_bytes: int, piece_bytes: int) -> int:
    """Returns how many pieces a chunk of so many bytes is cut into."""
    return max(-(-num_bytes // piece_bytes), 2 if 2 * num_bytes > piece_bytes else 1)


def pieces_of(program: Program, codec: Codec, numel: int, itemsize: int, piece_bytes: int) -> Pieces:
    """Returns the pieces that `program` moves for a buffer of `numel` elements."""
    if program.gathers:
        message_bytes = codec.wire_bytes(numel, itemsize) if numel else 0
        return cut((message_bytes,) * program.num_chunks, 1, piece_bytes)
    return cut(program.chunk_sizes(numel), itemsize, max(1, piece_bytes // program.piece_share))


def predict_bytes(
    program: Program, codec: Codec, numel: int, itemsize: int, rank: int, piece_bytes: int = PIECE_BYTES
) -> int:
    """Returns the payload bytes that `rank` sends in one run: exactly what a counting transport sees."""
    if program.num_ranks == 1 or numel == 0:
        return 0
    if program.native:
        unit = ITEM_BYTES[codec.sums_as] if codec.sums_as else itemsize
        return native_bytes(codec.wire_bytes(numel, itemsize) // unit, unit, program.num_ranks, rank)
    pieces = pieces_of(program, codec, numel, itemsize, piece_bytes)
    sizes = message_sizes(program, codec, pieces, itemsize)
    return program.bytes_sent(rank, [sum(sizes[piece] for piece in of) for of in pieces.of_chunk])


def message_sizes(program: Program, codec: Codec, pieces: Pieces, itemsize: int) -> list[int]:
    """Returns the bytes that each piece is on the wire."""
    if program.gathers:
        return list(pieces.sizes)
    of_size = {size: codec.wire_bytes(size, itemsize) for size in set(pieces.sizes)}  # they are few
    return [of_size[size] for size in pieces.sizes]
