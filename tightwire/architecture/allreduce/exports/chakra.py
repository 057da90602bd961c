"""Chakra execution traces: one file per rank, of sends and receives that wait for one another.

Written by hand in protocol buffers' wire format, after MLCommons' schema (mlcommons/chakra, schema/protobuf/
et_def.proto, schema version 0.0.4): a file is a sequence of messages, each after its length, a `GlobalMetadata` first
and then `Node`s. ASTRA-sim reads `comm_size`, `comm_src`, `comm_dst` and `comm_tag` of send and receive nodes.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from tightwire import files
from tightwire.architecture.allreduce.program import Program

SCHEMA = "0.0.4"
SEND_NODE, RECEIVE_NODE = 5, 6
# Field numbers of et_def.proto.
NODE_ID, NODE_NAME, NODE_TYPE, NODE_DATA_DEPS, NODE_ATTR = 1, 2, 3, 5, 10
ATTR_NAME, ATTR_INT32, ATTR_INT64, ATTR_BOOL = 1, 7, 9, 27
VARINT, BYTES = 0, 2


def write_chakra(program: Program, path: pathlib.Path, num_bytes: int) -> None:
    """Writes NAME.RANK.et for every rank of a program over a buffer of `num_bytes`."""
    for rank in range(program.num_ranks):
        messages = [_text(1, SCHEMA), *trace(program, rank, num_bytes)]
        content = b"".join(_varint(len(message)) + message for message in messages)
        files.write_bytes(path.with_name(f"{path.stem}.{rank}{path.suffix}"), content)


def trace(program: Program, rank: int, num_bytes: int) -> Iterator[bytes]:
    """Yields the nodes of one rank: a send or a reduction waits for what last arrived of its chunk."""
    sizes = program.chunk_sizes(num_bytes)
    latest: dict[int, int] = {}
    tags: dict[tuple[int, int], int] = {}
    number = 0
    for _, transfers in program.steps():
        arrived: dict[int, int] = {}
        for t in transfers:
            pair = (t.src, t.dst)
            tags[pair] = tags.get(pair, -1) + 1
            if rank not in pair:
                continue
            sends = t.src == rank
            waits = [latest[t.chunk]] if t.chunk in latest else []
            name = f"step {t.step}: {'send' if sends else t.op} chunk {t.chunk}"
            yield _node(number, name, sends, waits, pair, tags[pair], sizes[t.chunk])
            if not sends:
                arrived[t.chunk] = number
            number += 1
        latest |= arrived


def _node(
    number: int, name: str, sends: bool, waits: list[int], pair: tuple[int, int], tag: int, size: int
) -> bytes:
    fields = [
        _number(NODE_ID, number),
        _text(NODE_NAME, name),
        _number(NODE_TYPE, SEND_NODE if sends else RECEIVE_NODE),
    ]
    if waits:
        packed = b"".join(map(_varint, waits))
        fields.append(_key(NODE_DATA_DEPS, BYTES) + _varint(len(packed)) + packed)
    told = (
        ("is_cpu_op", ATTR_BOOL, 0),
        ("comm_size", ATTR_INT64, size),
        ("comm_src", ATTR_INT32, pair[0]),
        ("comm_dst", ATTR_INT32, pair[1]),
        ("comm_tag", ATTR_INT32, tag),
    )
    for label, kind, value in told:
        content = _text(ATTR_NAME, label) + _number(kind, value)
        fields.append(_key(NODE_ATTR, BYTES) + _varint(len(content)) + content)
    return b"".join(fields)


def _number(field: int, value: int) -> bytes:
    return _key(field, VARINT) + _varint(value)


def _text(field: int, text: str) -> bytes:
    content = text.encode()
    return _key(field, BYTES) + _varint(len(content)) + content


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _varint(value: int) -> bytes:
    """Returns an unsigned number, seven bits a byte, the lowest first.

    >>> _varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)
