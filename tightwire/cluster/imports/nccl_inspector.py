"""NCCL Inspector's JSON lines (ext-profiler/inspector of NVIDIA/nccl): every collective of a running job."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tightwire import files
from tightwire.cluster.imports.measured import measured_all_reduce
from tightwire.cluster.pieces import Point
from tightwire.cluster.values import Cluster
from tightwire.errors import FileError


def from_nccl_inspector(paths: Sequence[str | pathlib.Path]) -> Cluster:
    """Returns the cluster that NCCL Inspector watched: its files, of all ranks.

    A collective's time on one rank holds the waiting for the others, so the least over ranks counts: that of who came
    last. Of several communicators those of the most ranks count.

    Raises:
        FileError: unreadable, or fewer than two sizes of all-reduce.
    """
    least: dict[int, dict[tuple[str, int], Point]] = {}
    seen: dict[int, set[int]] = {}
    nodes: dict[int, int] = {}
    others: set[str] = set()
    for place, record in _records(paths):
        try:
            header, perf = record.get("header") or {}, record.get("coll_perf") or {}
            if not perf:
                continue
            if perf.get("coll") != "AllReduce":
                others.add(str(perf.get("coll"))[:30])
                continue
            ranks = int(header["n_ranks"])
            key = (str(header["id"]), int(perf["coll_sn"]))
            point = (float(perf["coll_msg_size_bytes"]), float(perf["coll_exec_time_us"]) / 1e6)
            rank = int(header.get("rank", 0))
            nodes[ranks] = int(header.get("nnodes", header.get("n_nodes", 1)))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise FileError(
                f"{place} is no record of NCCL Inspector: {files.told(error)} while reading it."
            ) from None
        if not (0 < point[0] < 1e15 and 0 < point[1] < 1e5 and 0 < ranks < 10**6):
            continue
        calls = least.setdefault(ranks, {})
        calls[key] = min(calls.get(key, point), point, key=lambda p: p[1])
        seen.setdefault(ranks, set()).add(rank)
    most = max(least, default=0)
    by_size: dict[float, list[float]] = {}
    for size, seconds in least.get(most, {}).values():
        by_size.setdefault(size, []).append(seconds)
    points = [(size, statistics.median(times)) for size, times in sorted(by_size.items())]
    if most < 2 or len(points) < 2:
        raise FileError(
            f"{', '.join(map(str, paths[:3]))}: seen {len(points)} sizes of AllReduce over {most} ranks; two of each "
            "are needed. Is this NCCL Inspector's output, and did the job communicate?"
        )
    notes = []
    if len(seen[most]) < most:
        notes.append(
            f"{len(seen[most])} of {most} ranks are in the files: times of the others, who may have come last, are not."
        )
    if len(least) > 1:
        notes.append(
            f"All-reduces among fewer ranks ({', '.join(map(str, sorted(least)[:-1]))}) are left out."
        )
    if others:
        notes.append(f"Not all-reduce, and left out: {', '.join(sorted(others)[:8])}.")
    even = nodes[most] if nodes[most] > 0 and most % max(1, nodes[most]) == 0 else 1
    return measured_all_reduce(points, most, nodes=even, notes=notes)


def _records(paths: Iterable[str | pathlib.Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in paths:
        text = files.read_text(path)
        if '"communicators"' in text[:100_000] and '"coll_perf"' not in text[:100_000]:
            raise FileError(
                f"{path} is a report of NCCL RAS: it tells who takes part, not how fast (`tightwire cluster import "
                "nccl-ras`); NCCL Inspector, nccl-tests or `tightwire probe` tell that."
            )
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            record = files.parse_json(line, f"{path}: line {number}")
            if not isinstance(record, dict):
                raise FileError(
                    f"{path}: line {number} is no record of NCCL Inspector, which writes objects."
                )
            yield f"{path}: line {number}", record
