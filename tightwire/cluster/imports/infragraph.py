"""InfraGraph (Keysight/infragraph): devices of components, instances of devices, and edges with links of a bandwidth.

Read are: components by `choice` and `count`, `instances`, `edges` in devices and between instances with the schemes
one2one and many2many, ranges such as `npu[0:2]` (as Python's: the second is not included), and a link's
`physical.bandwidth`. Components named xpu, npu or gpu are workers.
"""

from __future__ import annotations

import itertools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tightwire import files
from tightwire.cluster.graph import Link, LinkGraph
from tightwire.cluster.values import Cluster
from tightwire.errors import FileError
from tightwire.units import print_rate

WORKERS = ("xpu", "npu", "gpu")
BYTES_PER_S = {
    "gigabits_per_second": 1e9 / 8, "gigabytes_per_second": 1e9, "gigatransfers_per_second": 1e9 / 8,
}  # fmt: skip
SECONDS = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9}
MOST_LINKS = 200_000
MOST_PARTS = 20_000

Part = Mapping[str, Any]
Place = tuple[str, int, str, int]  # instance, its number, component, its number


def from_infragraph(path: str | pathlib.Path) -> Cluster:
    """Returns the cluster of an InfraGraph file, YAML or JSON: every link by itself.

    Links without a bandwidth are taken to be as fast as the fastest that has one, and named in the cluster's notes.

    Raises:
        FileError: unreadable, not InfraGraph, words that are not known, or workers that nothing joins.
    """
    content = files.read_yaml(path, "InfraGraph")
    try:
        return _Reading(content).cluster()
    except FileError as error:
        raise FileError(f"{path}: {files.shortened(str(error))}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise FileError(f"{path} is no InfraGraph file: {files.told(error)} while reading it.") from None


class _Reading:
    """One file while it is read."""

    def __init__(self, content: Any) -> None:
        if not isinstance(content, dict) or not content.get("devices") or not content.get("instances"):
            raise FileError("an InfraGraph file has devices and instances, and one of them is missing.")
        self._content = content
        self._devices: dict[str, Part] = {device["name"]: device for device in content["devices"]}
        self._instances = {i["name"]: (str(i["device"]), _count(i)) for i in content["instances"]}
        parts = (part for device in content["devices"] for part in device["components"])
        counts = [(name, count) for name, (_, count) in self._instances.items()]
        for name, count in [*counts, *((part["name"], _count(part)) for part in parts)]:
            if not 0 < count <= MOST_PARTS:
                raise FileError(f"{str(name)[:60]}: count {count} is outside 1 … {MOST_PARTS:,}.")
        if unknown := [device for device, _ in self._instances.values() if device not in self._devices]:
            raise FileError(f"instances: {unknown[0]!r} is no device of this file.")
        shared = list(content.get("links") or [])
        self._links = {link["name"]: link for link in shared}
        self._unknown: dict[str, None] = {}

    def cluster(self) -> Cluster:
        ends = [
            (*pair, *self._speed(edge, device))
            for edge, device, a, b in self._edges()
            for pair in _pairs(str(edge.get("scheme", "many2many")), a, b)
        ]
        fastest = max((rate for _, _, rate, _ in ends if rate), default=0.0)
        if not fastest:
            raise FileError("no link has a bandwidth: links: physical: bandwidth: is where it stands.")
        links = tuple(
            Link(ends=(_name(a), _name(b)), bandwidth_bytes_per_s=rate or fastest, latency_s=latency_s)
            for a, b, rate, latency_s in ends
        )
        workers = tuple(_name(place) for place in self._workers())
        if len(workers) < 2:
            raise FileError(f"{len(workers)} components are of a kind that trains: {', '.join(WORKERS)}.")
        notes = []
        if self._unknown:
            notes.append(
                f"The bandwidth of {', '.join(self._unknown)} is not in the file: {print_rate(fastest)}, that of the "
                "fastest link, is a guess."
            )
        cluster = Cluster.of_graph(LinkGraph(workers, links))
        return Cluster(
            workers=cluster.workers,
            bandwidth_bytes_per_s=cluster.bandwidth_bytes_per_s,
            latency_s=cluster.latency_s,
            graph=cluster.graph,
            notes=tuple(notes),
        )

    def _workers(self) -> Iterator[Place]:
        for instance, (device, count) in self._instances.items():
            for number, part in itertools.product(range(count), self._devices[device]["components"]):
                if str(part.get("choice")) in WORKERS or str(part["name"]) in WORKERS:
                    for place in range(_count(part)):
                        yield instance, number, str(part["name"]), place

    def _edges(self) -> Iterator[tuple[Part, Part | None, list[Place], list[Place]]]:
        """Yields every edge, the device that it is in, and the places that it joins."""
        total = 0
        for instance, (device, count) in self._instances.items():
            for number, edge in itertools.product(range(count), self._devices[device].get("edges") or []):
                a, b = (
                    self._places(instance, [number], str(edge[end]["component"])) for end in ("ep1", "ep2")
                )
                total += len(a) * len(b)
                _require_few(total)
                yield edge, self._devices[device], a, b
        for edge in self._content.get("edges") or []:
            sides = []
            for end in ("ep1", "ep2"):
                name, numbers = _range(str(edge[end]["instance"]), lambda n: self._instance(n)[1])
                sides.append(self._places(name, numbers, str(edge[end]["component"])))
            total += len(sides[0]) * len(sides[1])
            _require_few(total)
            yield edge, None, sides[0], sides[1]

    def _instance(self, name: str) -> tuple[str, int]:
        if name not in self._instances:
            raise FileError(f"edges: {name!r} is no instance of this file.")
        return self._instances[name]

    def _places(self, instance: str, numbers: Sequence[int], component: str) -> list[Place]:
        parts = {part["name"]: part for part in self._devices[self._instance(instance)[0]]["components"]}

        def count(name: str) -> int:
            if name not in parts:
                raise FileError(f"edges: {name!r} is no component of {self._instance(instance)[0]}.")
            return _count(parts[name])

        name, places = _range(component, count)
        return [(instance, number, name, place) for number in numbers for place in places]

    def _speed(self, edge: Part, device: Part | None) -> tuple[float, float]:
        """Returns bandwidth, 0 if the file does not say, and latency."""
        own = {link["name"]: link for link in (device or {}).get("links") or []}
        name = str(edge["link"])
        link = own.get(name, self._links.get(name))
        if link is None:
            raise FileError(f"edges: {name!r} is no link of this file.")
        physical = link.get("physical") or {}
        bandwidth, latency = physical.get("bandwidth") or {}, physical.get("latency") or {}
        if not bandwidth:
            self._unknown[name] = None
        elif not set(bandwidth) & set(BYTES_PER_S):
            raise FileError(f"links: {name}: the bandwidth is in none of {', '.join(BYTES_PER_S)}.")
        rate = sum(float(bandwidth[unit]) * size for unit, size in BYTES_PER_S.items() if unit in bandwidth)
        latency_s = sum(float(latency[unit]) * size for unit, size in SECONDS.items() if unit in latency)
        if not (0 <= rate < math.inf and 0 <= latency_s < math.inf):
            raise FileError(f"links: {name}: {rate:g} bytes per second and {latency_s:g} s cannot be.")
        return rate, latency_s


def _count(part: Part) -> int:
    return int(part.get("count", 1))


def _range(text: str, count_of: Any) -> tuple[str, range]:
    """Reads `npu`, `npu[1]` or `npu[0:2]`."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d{1,6})(?::(\d{1,6}))?\])?", text.strip())
    if not match:
        raise FileError(f"edges: {text[:60]!r} is no component or instance, such as npu, npu[0] or npu[0:2].")
    name, first, last = match[1], match[2], match[3]
    count = int(count_of(name))
    if first is None:
        return name, range(count)
    chosen = range(int(first), int(last) if last is not None else int(first) + 1)
    if not chosen or chosen[-1] >= count:
        raise FileError(f"edges: {text[:60]!r} goes beyond the {count} there are.")
    return name, chosen


def _pairs(scheme: str, a: list[Place], b: list[Place]) -> Iterator[tuple[Place, Place]]:
    if scheme == "one2one":
        if len(a) != len(b) and 1 not in (len(a), len(b)):
            raise FileError(f"edges: one2one joins as many as many, and here are {len(a)} and {len(b)}.")
        longer = max(len(a), len(b))
        yield from zip(a * (longer // len(a)), b * (longer // len(b)), strict=True)
    elif scheme == "many2many":
        yield from ((x, y) for x, y in itertools.product(a, b) if x != y and (a != b or x < y))
    else:
        raise FileError(f"edges: the scheme {scheme[:40]!r} is not known; known are one2one and many2many.")


def _require_few(links: int) -> None:
    if links > MOST_LINKS:
        raise FileError(
            f"its edges join more than {MOST_LINKS:,} pairs; describe levels in a cluster file instead."
        )


def _name(place: Place) -> str:
    return f"{place[0]}{place[1]}.{place[2]}{place[3]}"
