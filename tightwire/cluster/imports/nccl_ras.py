"""The JSON report of NCCL's RAS (`ncclras -f json`, NCCL 2.24 and later): who takes part in a running job, and where.

Words: src/ras/client_support.cc of NVIDIA/nccl, from 2.28 on. RAS measures nothing: it tells nodes, ranks and devices,
who is missing, and how many collectives each rank has begun.
"""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tightwire import files
from tightwire.cluster.imports import hardware
from tightwire.cluster.levels import Level
from tightwire.cluster.values import Cluster
from tightwire.errors import FileError
from tightwire.units import print_rate

Rank = Mapping[str, Any]
INSIDE_BYTES_PER_S = hardware.PCIE_BYTES_PER_S[hardware.FALLBACK_GTS] * hardware.FALLBACK_LANES
ACROSS_BYTES_PER_S = 1.25e9
LATENCY_S = 25e-6
MOST_RANKS = 100_000
MOST_NAMED = 5


def from_nccl_ras(path: str | pathlib.Path) -> Cluster:
    """Returns the shape of the cluster on which a job runs: its largest communicator. All speeds are guesses.

    The notes say so, and name ranks that are missing, report an error, or have begun fewer collectives than others.

    Raises:
        FileError: unreadable, no report of RAS, or no communicator of two ranks.
    """
    report = files.read_json(path)
    try:
        communicators = [c for c in report["communicators"] if isinstance(c["size"], int)]
        largest = max(communicators, key=lambda c: c["size"], default=None)
        if largest is None or not 2 <= largest["size"] <= MOST_RANKS:
            size = 0 if largest is None else largest["size"]
            raise FileError(
                f"{path}: its largest communicator has {size} ranks; 2 to {MOST_RANKS:,} make a cluster."
            )
        present, missing = list(largest["ranks"]), list(largest.get("missing_ranks") or [])
        notes = [*_health(present, missing), *_of_all(communicators, largest)]
        return _shaped(int(largest["size"]), [*present, *missing], notes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(
            f"{path} is no report of NCCL RAS ({files.told(error)} while reading it); write it with `ncclras -f json`."
        ) from None


def _shaped(size: int, ranks: Sequence[Rank], notes: Sequence[str]) -> Cluster:
    hosts = [str(rank["host"]) for rank in sorted(ranks, key=lambda rank: int(rank["rank"]))]
    names = list(dict.fromkeys(hosts))
    each, rest = divmod(size, len(names)) if names else (0, 1)
    is_known = len(hosts) == size and not rest and "unknown" not in names
    is_even = is_known and all(hosts[i] == names[i // each] for i in range(size))
    guess = f"{print_rate(ACROSS_BYTES_PER_S)} between nodes"
    if is_even and len(names) == 1:
        levels: tuple[Level, ...] = (
            Level(name="node", workers=size, bandwidth_bytes_per_s=INSIDE_BYTES_PER_S),
        )
        guess = f"{print_rate(INSIDE_BYTES_PER_S)} inside the node"
    elif is_even and each > 1:
        levels = (
            Level(name="node", workers=each, bandwidth_bytes_per_s=INSIDE_BYTES_PER_S),
            Level(
                name="cluster", workers=size, bandwidth_bytes_per_s=ACROSS_BYTES_PER_S, latency_s=LATENCY_S
            ),
        )
        guess += f" and {print_rate(INSIDE_BYTES_PER_S)} inside"
    else:
        levels = (
            Level(
                name="cluster", workers=size, bandwidth_bytes_per_s=ACROSS_BYTES_PER_S, latency_s=LATENCY_S
            ),
        )
        if not is_even:
            notes = [
                "Ranks are not spread evenly over hosts, or not all are known: no level stands for nodes.",
                *notes,
            ]
    said = (
        f"RAS tells who takes part, not how fast: {guess} are guesses. Measure with `tightwire probe`, nccl-tests or "
        "NCCL Inspector."
    )
    return replace(Cluster.of_levels(*levels), notes=(said, *notes))


def _health(present: Sequence[Rank], missing: Sequence[Rank]) -> Iterator[str]:
    """Yields what is wrong with ranks, in sentences that name them."""
    if missing:
        told = [
            _who(rank) + (", considered dead" if (rank.get("status") or {}).get("considered_dead") else "")
            for rank in missing
        ]
        yield f"{len(missing)} ranks did not answer: {_some(told)}."
    failed = [_who(rank) for rank in present if (rank.get("status") or {}).get("async_error")]
    if failed:
        yield f"{len(failed)} ranks report an error of NCCL: {_some(failed)}."
    counts: dict[str, list[int]] = {}
    for rank in present:
        for name, count in (rank.get("collective_counts") or {}).items():
            counts.setdefault(str(name), []).append(int(count))
    for name, begun in counts.items():
        most, usual = max(begun), Counter(begun).most_common(1)[0][0]
        if min(begun) == most:
            continue
        behind = [
            f"{_who(rank)} began {count}"
            for rank in present
            if (count := rank["collective_counts"][name]) != usual
        ]
        yield (
            f"Ranks have begun unlike numbers of {name}: most {usual}, {_some(behind)}. Who is behind holds the others "
            "up, or the report was taken in between."
        )


def _of_all(communicators: Sequence[Mapping[str, Any]], largest: Mapping[str, Any]) -> Iterator[str]:
    if others := [int(c["size"]) for c in communicators if c is not largest]:
        sizes = ", ".join(
            f"{count} of {size}" for size, count in sorted(Counter(others).items(), reverse=True)
        )
        yield f"Other communicators are left out: {sizes} ranks."


def _who(rank: Rank) -> str:
    return f"rank {int(rank['rank'])} (process {rank.get('pid')} on {str(rank.get('host'))[:60]})"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"
