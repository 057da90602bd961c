"""A cluster from the collectives in all ranks' traces.

A collective's time on one rank holds the waiting for the others: the least over ranks counts, that of who came last.
Process groups have sizes of their own: the one of the most ranks that has all-reduces of two sizes counts.
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightwire.cluster import Cluster
from tightwire.cluster.imports import measured_all_reduce
from tightwire.errors import FileError
from tightwire.profile.traces.events import Event, Trace, item_bytes, read

MOST_ELEMENTS = 10**13

Call = tuple[int, float]  # bytes, seconds


@dataclass(frozen=True)
class Group:
    """A process group: its name or its ranks, and how many they are; 0 if the trace does not say."""

    name: str
    size: int


def cluster_of_traces(paths: Sequence[str | pathlib.Path]) -> Cluster:
    """Returns the cluster that the all-reduces in all ranks' traces were measured on.

    Raises:
        FileError: unreadable, no communication in them, or ranks that did not call the same collectives.
    """
    return cluster_of_calls(paths, [_all_reduces(read(path)) for path in paths])


def cluster_of_calls(
    paths: Sequence[str | pathlib.Path], by_rank: Sequence[Mapping[Group, list[Call]]]
) -> Cluster:
    """Returns the cluster on which ranks called these all-reduces.

    Args:
        paths: where the calls of each rank come from.
        by_rank: the calls of each rank, by process group.

    Raises:
        FileError: no communication, or ranks that did not call the same collectives.
    """
    by_group: dict[Group, list[list[Call]]] = {}
    for found in by_rank:
        for group, calls in found.items():
            by_group.setdefault(group, []).append(calls)
    shared = {
        group: ranks
        for group, ranks in by_group.items()
        if len(ranks) >= 2 and len({num_bytes for num_bytes, _ in ranks[0]}) >= 1
    }
    if not shared:
        raise FileError(
            f"{', '.join(map(str, paths[:4]))}: no all-reduce with its size in "
            f"{'two of them that are of one group' if len(paths) > 1 else 'the only one'}; a cluster needs the traces "
            "of all ranks of a job that communicates, at least two."
        )
    group = max(shared, key=lambda g: (g.size or len(shared[g]), sum(len(calls) for calls in shared[g])))
    ranks, size = shared[group], group.size or len(shared[group])
    sizes = [[num_bytes for num_bytes, _ in calls] for calls in ranks]
    if any(other != sizes[0] for other in sizes):
        raise FileError("the ranks' traces hold different all-reduces; profile the same steps on every rank.")
    least: dict[int, list[float]] = {}
    for same in zip(*ranks, strict=True):
        least.setdefault(same[0][0], []).append(min(seconds for _, seconds in same))
    points = [(float(num_bytes), statistics.median(times)) for num_bytes, times in sorted(least.items())]
    if len(points) < 2:
        raise FileError(
            "all all-reduces are of one size; α and β need two: use a smaller bucket size as well."
        )
    notes = []
    if len(ranks) < size:
        notes.append(
            f"{len(ranks)} of {size} ranks' traces are given: the least time over these may still hold waiting."
        )
    if others := sorted({g.size or len(by_group[g]) for g in by_group if g != group}):
        notes.append(
            f"All-reduces in other process groups, of {', '.join(map(str, others))} ranks, are left out."
        )
    return measured_all_reduce(points, size, notes=notes)


def _all_reduces(trace: Trace) -> dict[Group, list[Call]]:
    """Returns bytes and seconds of each all-reduce by its group: of kernels where there are some, else of calls."""
    calls = [event for event in trace.events if _is_all_reduce(event)]
    kernels = [event for event in calls if event.category == "kernel"]
    found: dict[Group, list[Call]] = {}
    for event in kernels or calls:
        nelems = event.args.get("In msg nelems")
        if (
            not isinstance(nelems, int)
            or isinstance(nelems, bool)
            or not 0 < nelems < MOST_ELEMENTS
            or event.end_s <= event.start_s
        ):
            continue
        size = event.args.get("Group size")
        name = event.args.get("Process Group Ranks") or event.args.get("Process Group Name") or ""
        group = Group(str(name), size if isinstance(size, int) and 1 < size < 10**6 else 0)
        num_bytes = nelems * item_bytes(event.args.get("dtype"), trace.path)
        found.setdefault(group, []).append((num_bytes, event.end_s - event.start_s))
    return found


def _is_all_reduce(event: Event) -> bool:
    name = str(event.args.get("Collective name", "")).lower().replace("_", "")
    return name.startswith("allreduce")
