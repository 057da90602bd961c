"""Chakra execution traces of all ranks (mlcommons/chakra, schema/protobuf/et_def.proto): the cluster they were run on.

A file is a sequence of protocol buffers, each after its length: `GlobalMetadata`, then `Node`s. Read are collectives
(`COMM_COLL_NODE`) that are all-reduces with a size and a duration. Traces that were made up for a simulator have no
durations, and are refused.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from tightwire import files
from tightwire.cluster import Cluster
from tightwire.errors import FileError
from tightwire.profile.traces.collectives import Call, Group, cluster_of_calls

COLLECTIVE_NODE, ALL_REDUCE = 7, 0
# Field numbers of et_def.proto.
NODE_TYPE, NODE_DURATION_US, NODE_ATTR = 3, 7, 10
ATTR_NAME, ATTR_NUMBERS, ATTR_SIGNED, ATTR_STRING = 1, (7, 9, 11, 13), (15, 17), 29
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_BYTES = 10**9

Value = int | bytes


def cluster_of_chakra(paths: Sequence[str | pathlib.Path]) -> Cluster:
    """Returns the cluster that the all-reduces in all ranks' Chakra traces were measured on.

    Raises:
        FileError: unreadable, no measured all-reduce in them, or ranks that did not call the same collectives.
    """
    return cluster_of_calls(paths, [_all_reduces(path) for path in paths])


def _all_reduces(path: str | pathlib.Path) -> dict[Group, list[Call]]:
    found: dict[Group, list[Call]] = {}
    try:
        for message in list(_messages(files.read_bytes(path, most_bytes=MOST_BYTES)))[1:]:
            fields = list(_fields(message))
            numbers = {number: value for number, value in fields if isinstance(value, int)}
            if numbers.get(NODE_TYPE) != COLLECTIVE_NODE:
                continue
            attributes = dict(_attribute(v) for n, v in fields if n == NODE_ATTR and isinstance(v, bytes))
            size, us = attributes.get("comm_size", 0), numbers.get(NODE_DURATION_US, 0)
            if attributes.get("comm_type", ALL_REDUCE) != ALL_REDUCE or not isinstance(size, int):
                continue
            if 0 < size < 10**15 and 0 < us < 10**12:
                group = Group(str(attributes.get("pg_name", "")), 0)
                found.setdefault(group, []).append((size, us / 1e6))
    except (IndexError, ValueError) as error:
        raise FileError(f"{path} is no Chakra trace: {error}.") from None
    return found


def _messages(data: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        length, place = _varint(data, place)
        if place + length > len(data):
            raise ValueError("a message is cut off")
        yield data[place : place + length]
        place += length


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Yields number and value of each field of one message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _varint(message, place)
            yield number, value
        elif kind == BYTES:
            length, place = _varint(message, place)
            if place + length > len(message):
                raise ValueError("a field is cut off")
            yield number, message[place : place + length]
            place += length
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field is of kind {kind}, which protocol buffers do not have")


def _attribute(content: bytes) -> tuple[str, int | str]:
    name, value = "", 0
    text = ""
    for number, found in _fields(content):
        if isinstance(found, bytes):
            if number in (ATTR_NAME, ATTR_STRING):
                decoded = found.decode("utf-8", "replace")
                name, text = (decoded, text) if number == ATTR_NAME else (name, decoded)
        elif number in ATTR_NUMBERS:
            value = found
        elif number in ATTR_SIGNED:
            value = (found >> 1) ^ -(found & 1)
    return name, text or value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Returns an unsigned number and where it ends: seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number is longer than ten bytes")
