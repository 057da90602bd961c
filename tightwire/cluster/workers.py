"""Workers that are not all alike: devices of several speeds, slow lines, and delays as they were measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire import files
from tightwire.cluster.limits import MAX_WORKERS, require_bandwidth, require_range
from tightwire.errors import FileError, UnitError
from tightwire.units import parse_rate

MAX_DELAYS = 100_000
# Shares of a batch are written with few digits.
SHARES_TOLERANCE = 0.02


# What a command may say of a kind: the field, and how it is read.
SETTINGS: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "speed": ("speed", float),
    "line": ("bandwidth_bytes_per_s", parse_rate),
    "price": ("price_per_hour", float),
    "share": ("batch_share", float),
}
EXAMPLES = {"speed": "0.45", "line": "10gbit", "price": "2.74", "share": "0.5"}


@dataclass(frozen=True, kw_only=True)
class WorkerKind:
    """Workers that are alike: so many consecutive ranks.

    Attributes:
        name: such as `a100`.
        workers: how many.
        speed: of computing, over that of the device that the profile is of: at 0.5 the same samples take twice as long.
        batch_share: on how many of the profile's samples each of them trains; 1.0 on average over all workers.
        bandwidth_bytes_per_s: payload of each one's line, where it is not the cluster's.
        delays: measured times of steps over their median, in any order; none: as much noise as the profile says.
        price_per_hour: of each, where it is not the cluster's.
    """

    __pydantic_config__: ClassVar = files.STRICT

    name: str
    workers: int
    speed: float = 1.0
    batch_share: float = 1.0
    bandwidth_bytes_per_s: float | None = None
    delays: tuple[float, ...] = ()
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        field = f"kinds: {self.name}"
        require_range(f"{field}: workers", self.workers, 1, MAX_WORKERS)
        require_range(f"{field}: speed", self.speed, 1e-3, 1e3)
        require_range(f"{field}: batch_share", self.batch_share, 1e-3, 1e3)
        if self.bandwidth_bytes_per_s is not None:
            require_bandwidth(f"{field}: bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        require_range(f"{field}: number of delays", len(self.delays), 0, MAX_DELAYS)
        for delay in self.delays:
            require_range(f"{field}: delays", delay, 1e-3, 1e4)
        if self.price_per_hour is not None:
            require_range(f"{field}: price_per_hour", self.price_per_hour, 0.0, 1e6)


def parse_kinds(text: str) -> tuple[tuple[WorkerKind, ...], frozenset[str]]:
    """Reads kinds as a command has them: `a100:4+v100:3,speed=0.45+far:1,line=100mbit,price=1.2,share=0.5`.

    >>> kinds, told = parse_kinds("a100:4+v100:3,speed=0.45")
    >>> [(kind.name, kind.workers, kind.speed) for kind in kinds], sorted(told)
    ([('a100', 4, 1.0), ('v100', 3, 0.45)], ['v100'])

    Returns:
        The kinds; and the names of those whose speed is told.

    Raises:
        FileError: what is no kind, or a number that cannot be read, with how it is written.
    """
    kinds, told = [], set()
    for part in text.split("+"):
        head, *settings = part.strip().split(",")
        name, _, workers = head.partition(":")
        if not name or not workers.isdecimal():
            raise FileError(
                f"--kinds {part!r}: write NAME:WORKERS, as in a100:4+v100:3,speed=0.45,line=10gbit."
            )
        given: dict[str, float] = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in SETTINGS:
                raise FileError(f"--kinds {part!r}: {key!r} is none of {', '.join(SETTINGS)}.")
            field, read = SETTINGS[key]
            try:
                given[field] = read(value)
            except (UnitError, ValueError):
                ask = f"write {key}={EXAMPLES[key]}"
                raise FileError(f"--kinds {part!r}: {key}={value} cannot be read; {ask}.") from None
            if key == "speed":
                told.add(name)
        try:
            kind = WorkerKind(
                name=name,
                workers=int(workers),
                speed=given.get("speed", 1.0),
                batch_share=given.get("batch_share", 1.0),
                bandwidth_bytes_per_s=given.get("bandwidth_bytes_per_s"),
                price_per_hour=given.get("price_per_hour"),
            )
        except FileError as error:
            raise FileError(f"--kinds {part!r}: {str(error).removeprefix(f'kinds: {name}: ')}") from None
        kinds.append(kind)
    return tuple(kinds), frozenset(told)


def require_kinds(kinds: Sequence[WorkerKind], workers: int) -> None:
    """Makes sure that kinds have names of their own, are all workers, and share the batch out exactly.

    Raises:
        FileError: they are not, with what they are.
    """
    if not kinds:
        return
    names = [kind.name for kind in kinds]
    if len(set(names)) < len(names):
        raise FileError(
            f"kinds: {', '.join(names)}: a name appears twice; ranks of one kind are consecutive."
        )
    found = sum(kind.workers for kind in kinds)
    if found != workers:
        counted = " + ".join(str(kind.workers) for kind in kinds)
        raise FileError(f"kinds: {counted} workers are {found}, and workers is {workers}; make them equal.")
    share = sum(kind.workers * kind.batch_share for kind in kinds) / workers
    if abs(share - 1) > SHARES_TOLERANCE:
        raise FileError(
            f"kinds: batch_share is {share:.3g} on average over all workers; it must be 1, for shares divide the "
            "profile's batch and make it no larger."
        )


def by_speed(kinds: Sequence[WorkerKind]) -> tuple[WorkerKind, ...]:
    """Returns the kinds with the batch shared by speed, so that all compute for equally long.

    >>> kinds = WorkerKind(name="new", workers=1, speed=3.0), WorkerKind(name="old", workers=1)
    >>> [kind.batch_share for kind in by_speed(kinds)]
    [1.5, 0.5]
    """
    mean = sum(kind.workers * kind.speed for kind in kinds) / sum(kind.workers for kind in kinds)
    return tuple(dataclasses.replace(kind, batch_share=kind.speed / mean) for kind in kinds)


def first_of(kinds: Sequence[WorkerKind], workers: int) -> tuple[WorkerKind, ...]:
    """Returns the kinds of the first so many ranks, who share their batch as before."""
    found: list[WorkerKind] = []
    for kind in kinds:
        if workers > 0:
            found.append(dataclasses.replace(kind, workers=min(kind.workers, workers)))
            workers -= kind.workers
    total = sum(kind.workers for kind in found)
    mean = sum(kind.workers * kind.batch_share for kind in found) / total if found else 1.0
    return tuple(dataclasses.replace(kind, batch_share=kind.batch_share / mean) for kind in found)


def each_line(kinds: Sequence[WorkerKind], bandwidth_bytes_per_s: float) -> tuple[float, ...]:
    """Returns the rate of every rank's line, where that of most is given."""
    return tuple(
        kind.bandwidth_bytes_per_s or bandwidth_bytes_per_s for kind in kinds for _ in range(kind.workers)
    )
