"""Chakra traces: what another writer of the format writes is read; what has no times, or is none, is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tightwire.architecture import build
from tightwire.architecture.allreduce.exports.chakra import write_chakra
from tightwire.errors import FileError
from tightwire.profile.traces import cluster_of_chakra


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def node(place: int, kind: int, size: int, us: int, *, group: str = "0", comm_type: int = 0) -> bytes:
    attributes = (
        text(1, b"comm_type") + number(9, comm_type),
        text(1, b"comm_size") + number(13, size),
        text(1, b"pg_name") + text(29, group.encode()),
        text(1, b"cost") + varint(3 << 3 | 1) + bytes(8),
    )
    named = number(1, place) + text(2, b"all-reduce") + number(3, kind) + number(7, us)
    return named + b"".join(text(10, attribute) for attribute in attributes)


def chakra(calls: Sequence[tuple[int, int]], **about: int) -> bytes:
    nodes = [node(place, 7, size, us, **about) for place, (size, us) in enumerate(calls)]  # type: ignore[arg-type]
    nodes += [
        node(90, 4, 10**6, 7),
        node(91, 7, 10**6, 9, comm_type=2),
        node(92, 7, 10**6, 3, group="tensor"),
    ]
    return b"".join(varint(len(message)) + message for message in (text(1, b"0.0.4"), *nodes))


def test_measured_all_reduces_of_all_ranks(tmp_path: Path) -> None:
    paths = [tmp_path / f"{rank}.et" for rank in range(4)]
    sizes = (10**5, 10**6, 10**7)
    for rank, path in enumerate(paths):
        path.write_bytes(chakra([(size, 100 + size // 100 + 77 * rank) for size in sizes]))
    cluster = cluster_of_chakra(paths)
    assert cluster.workers == 4
    assert cluster.fits[0].seconds(1.5 * 10**6) == pytest.approx(100e-6 + 1e-2)


def test_what_is_no_measurement_is_refused(tmp_path: Path) -> None:
    write_chakra(build("ring", 2), tmp_path / "ring.et", 10**6)
    with pytest.raises(FileError, match="no all-reduce with its size"):
        cluster_of_chakra([tmp_path / "ring.0.et", tmp_path / "ring.1.et"])
    path = tmp_path / "bad.et"
    whole = chakra([(10**5, 100), (10**6, 200)])
    odd = {"cut off": whole[:-3], "longer than ten bytes": b"\xff" * 30, "of kind 7": b"\x00\x05\x0f1234"}
    for says, data in odd.items():
        path.write_bytes(data)
        with pytest.raises(FileError, match=says):
            cluster_of_chakra([path, path])
