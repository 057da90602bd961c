"""Clusters from what NVIDIA's tools write: NCCL's topology XML, nccl-tests' tables, NCCL Inspector's JSON."""

from __future__ import annotations

import json
import math
import pathlib
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from tightwire.cluster.fit import Fit
from tightwire.cluster.limits import MAX_LATENCY_S
from tightwire.cluster.values import Cluster, Level
from tightwire.errors import FileError

# Payload of one NVLink each way by compute capability, as NCCL's own graph search assumes (graph/topo.h).
NVLINK_BYTES_PER_S = {60: 18e9, 70: 20e9, 80: 20e9, 86: 12e9, 89: 12e9, 90: 20.6e9, 100: 40.1e9}
# PCI Express payload per lane: transfers a second, times what 128b/130b (8b/10b up to 5 GT/s) coding leaves.
PCIE_BYTES_PER_S = {"2.5": 0.25e9, "5.0": 0.5e9, "8.0": 0.985e9, "16.0": 1.969e9, "32.0": 3.938e9}
NETWORK_LATENCY_S = 5e-6

Point = tuple[int, float]  # bytes of the buffer, seconds


def from_nccl_topology(path: str | pathlib.Path, nodes: int = 1) -> Cluster:
    """Returns a cluster of nodes like the one that NCCL wrote with `NCCL_TOPO_DUMP_FILE`.

    A worker's rate inside is that of its NVLinks, else of its PCI Express lanes; a node's rate to others is the sum of
    its network ports.

    Raises:
        FileError: unreadable, no GPU in it, or several nodes of a node without a network.
    """
    root = _read_xml(path)
    gpus = list(root.iter("gpu"))
    if not gpus:
        raise FileError(f"{path} describes no GPU; write it with NCCL_TOPO_DUMP_FILE while a job runs.")
    inside = Level(
        name="node",
        workers=len(gpus),
        bandwidth_bytes_per_s=min(_inside(root, gpu) for gpu in gpus),
    )
    across = sum(float(net.get("speed", 0)) * 1e6 / 8 for net in root.iter("net"))
    if nodes > 1 and not across:
        raise FileError(f"{path} describes a node without a network; nodes={nodes} of them are not joined.")
    if nodes == 1:
        return Cluster.of_levels(inside)
    latency_s = max(float(net.get("latency", 0)) for net in root.iter("net")) * 1e-6
    outside = Level(
        name="cluster",
        workers=nodes * len(gpus),
        bandwidth_bytes_per_s=across,
        latency_s=latency_s or NETWORK_LATENCY_S,
    )
    return Cluster.of_levels(inside, outside)


def from_nccl_tests(path: str | pathlib.Path) -> Cluster:
    """Returns the cluster that an `all_reduce_perf` run of nccl-tests measured: its text, as printed.

    Raises:
        FileError: unreadable, no ranks, or fewer than two sizes.
    """
    text = _read_text(path)
    ranks = len(re.findall(r"^#\s+Rank\s+\d+", text, flags=re.MULTILINE))
    row = re.compile(r"^\s*(\d+)\s+\d+\s+\S+\s+\S+\s+-?\d+\s+([\d.]+)\s+[\d.]+\s+[\d.]+", flags=re.MULTILINE)
    points = [(int(size), float(us) / 1e6) for size, us in row.findall(text) if int(size) > 0]
    if ranks < 2 or len(points) < 2:
        raise FileError(
            f"{path}: seen {ranks} ranks and {len(points)} sizes; all_reduce_perf prints a `#  Rank` line per rank and "
            "a line per size, and two of each are needed."
        )
    return measured_all_reduce(points, ranks)


def from_nccl_inspector(paths: Sequence[str | pathlib.Path]) -> Cluster:
    """Returns the cluster that NCCL Inspector watched: its files of JSON lines, of all ranks.

    A collective's time on one rank holds the waiting for the others, so the least over ranks counts: that of who came
    last.

    Raises:
        FileError: unreadable, or fewer than two sizes of all-reduce.
    """
    least: dict[tuple[str, int], Point] = {}
    ranks = 0
    for record in _records(paths):
        header, perf = record.get("header", {}), record.get("coll_perf", {})
        if perf.get("coll") != "AllReduce":
            continue
        ranks = max(ranks, int(header.get("n_ranks", 0)))
        key = (str(header.get("id")), int(perf["coll_sn"]))
        point = (int(perf["coll_msg_size_bytes"]), float(perf["coll_exec_time_us"]) / 1e6)
        least[key] = min(least.get(key, point), point, key=lambda p: p[1])
    by_size: dict[int, list[float]] = {}
    for size, seconds in least.values():
        by_size.setdefault(size, []).append(seconds)
    points = [(size, statistics.median(times)) for size, times in sorted(by_size.items())]
    if ranks < 2 or len(points) < 2:
        raise FileError(
            f"{', '.join(map(str, paths))}: seen {len(points)} sizes of AllReduce over {ranks} ranks; two of each are "
            "needed. Is this NCCL Inspector's output, and did the job communicate?"
        )
    return measured_all_reduce(points, ranks)


def fit_alpha_beta(points: Sequence[Point]) -> tuple[float, float, float]:
    """Returns α in seconds, β in seconds per byte, and the residual of least relative squares."""
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    rise = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
    beta = max(0.0, rise / spread) if spread else 0.0
    alpha = max(0.0, mean_y - beta * mean_x)
    errors = [(alpha + beta * x) / y - 1 for x, y in points]
    return alpha, beta, math.sqrt(statistics.fmean(e * e for e in errors))


def measured_all_reduce(points: Sequence[Point], ranks: int) -> Cluster:
    """Returns the cluster of `ranks` workers on which all-reduces of these sizes took these times.

    Raises:
        FileError: times that do not grow with size.
    """
    alpha_s, s_per_byte, residual = fit_alpha_beta(points)
    sent_share = 2 * (ranks - 1) / ranks  # of the buffer, by the busiest rank
    beta_s_per_byte = s_per_byte / sent_share
    if not beta_s_per_byte:
        raise FileError("the times measured do not grow with size: measure larger buffers, up to 1 GB.")
    fit = Fit(program="native", alpha_s=alpha_s, beta_s_per_byte=beta_s_per_byte, residual=residual)
    return Cluster(
        workers=ranks,
        bandwidth_bytes_per_s=1 / beta_s_per_byte,
        latency_s=min(MAX_LATENCY_S, alpha_s / (2 * (ranks - 1))),
        fits=(fit,),
    )


def _inside(root: ElementTree.Element, gpu: ElementTree.Element) -> float:
    capability = int(gpu.get("sm", 70))
    known = max((sm for sm in NVLINK_BYTES_PER_S if sm <= capability), default=60)
    links = sum(int(link.get("count", 1)) for link in gpu.iter("nvlink"))
    if links:
        return links * NVLINK_BYTES_PER_S[known]
    holder = next(pci for pci in root.iter("pci") if gpu in list(pci))
    lane = PCIE_BYTES_PER_S.get((holder.get("link_speed") or "8.0").split()[0], 0.985e9)
    return lane * int(holder.get("link_width") or 16)


def _records(paths: Iterable[str | pathlib.Path]) -> Iterator[dict[str, dict[str, Any]]]:
    for path in paths:
        for number, line in enumerate(_read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise FileError(f"{path}: line {number} is no JSON: {error}.") from None
            yield record


def _read_xml(path: str | pathlib.Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(_read_text(path))
    except ElementTree.ParseError as error:
        raise FileError(f"{path} is no XML: {error}.") from None


def _read_text(path: str | pathlib.Path) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.") from None
