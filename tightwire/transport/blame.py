"""Whom to blame when a wait fails: from who waits for whom, to a list of ranks and a sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tightwire.errors import PeerError

Fault = Literal["silent", "left", "late", "cycle"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ranks to blame, and for what: the same on every rank.

    Attributes:
        ranks: ascending world ranks.
        fault: silent (does not answer at all), left (closed its transport), late (alive, but elsewhere),
            cycle (they wait for each other).
        note: more about it, as in "ValueError: …" for a rank that left because of it.
    """

    ranks: tuple[int, ...]
    fault: Fault
    note: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a rank waits for.

    Attributes:
        peers: world ranks whose part is missing.
        what: as in "to receive 4.0 MB, tag 3".
    """

    peers: frozenset[int]
    what: str


def judge(
    start: int,
    waits: Mapping[int, Collection[int]],
    *,
    silent: Collection[int] = (),
    left: Mapping[int, str] | Collection[int] = (),
) -> Verdict:
    """Follows who waits for whom from rank `start` to the ranks to blame.

    Args:
        start: a rank whose wait failed.
        waits: for each rank that answered, the ranks it waits for (none: it is busy elsewhere).
        silent: ranks that gave no sign of life; when there are any, they are to blame.
        left: ranks that closed their transport, and the reason of those that failed.
    """
    reached = _reach(start, waits)
    if silent:
        return Verdict(tuple(sorted(silent)), "silent")
    gone = reached & set(left)
    if gone:
        notes = [left[rank] for rank in sorted(gone)] if isinstance(left, Mapping) else []
        return Verdict(tuple(sorted(gone)), "left", "; ".join(note for note in notes if note))
    late = {rank for rank in reached if not waits.get(rank)}
    if late:
        return Verdict(tuple(sorted(late)), "late")
    return Verdict(tuple(sorted(reached)), "cycle")


def accuse(verdict: Verdict, *, waiting: Wait | None, deadline_s: float) -> PeerError:
    """Returns the error that a worker raises: who, what was waited for, what to do."""
    many = len(verdict.ranks) > 1
    are, have, do, their, they = (
        ("are", "have", "do", "their", "they") if many else ("is", "has", "does", "its", "it")
    )
    during = f" while this worker waited {waiting.what}" if waiting else ""
    sentence = {
        "silent": f"{do} not answer{during}; {they} {have} died, {are} frozen, or never reached this point. "
        f"Look at {their} log; raise deadline_s, now {deadline_s:g} s, if {they} {are} only slow.",
        "left": f"left{during}. Every worker must run the same number of steps: give each the same number of "
        "batches, and close only at the end.",
        "late": f"{are} alive but did not reach this point within {deadline_s:g} s{during}. Look in {their} "
        f"program for a branch or a longer loop; raise deadline_s if {they} {are} only slow.",
        "cycle": f"wait for each other{during}: they disagree about the order, the sizes or the tags of what "
        "they send. Every worker must run the same collectives in the same order.",
    }[verdict.fault]
    if verdict.note:
        sentence = f"failed{during}: {verdict.note}. Look at {their} log."
    return PeerError(f"{name_ranks(verdict.ranks)} {sentence}", verdict.ranks)


def describe(verb: str, num_bytes: int, tag: int) -> str:
    """Returns what a point-to-point wait is for, as in "to receive 4.0 MB, tag 3"."""
    return f"to {verb} {name_bytes(num_bytes)}, tag {tag}"


def name_ranks(ranks: Iterable[int]) -> str:
    """Returns "rank 2" or "ranks 1, 2 and 5"."""
    names = [str(rank) for rank in ranks]
    if len(names) == 1:
        return f"rank {names[0]}"
    return f"ranks {', '.join(names[:-1])} and {names[-1]}"


def name_bytes(num_bytes: int) -> str:
    """Returns "17 bytes", "4.0 kB" or "16.8 MB" (powers of ten)."""
    if num_bytes < 1000:
        return f"{num_bytes} bytes"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    raise AssertionError(num_bytes)


def _reach(start: int, waits: Mapping[int, Collection[int]]) -> set[int]:
    reached: set[int] = set()
    frontier = set(waits.get(start, ()))
    while frontier:
        reached |= frontier
        frontier = {peer for rank in frontier for peer in waits.get(rank, ())} - reached
    return reached
