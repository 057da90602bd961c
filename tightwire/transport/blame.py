"""Whom to blame when a wait fails: from what was observed to a list of ranks and a sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tightwire.errors import PeerError
from tightwire.units import print_size

Reason = Literal["failed", "dead", "silent", "left", "broken", "late", "cycle", "slow", "given-up", "alone"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ranks to blame, and for what: the same on every rank.

    Attributes:
        ranks: ascending world ranks.
        reason: failed (said so, `note` is its error), dead (its process has ended without a word), silent (does not
            answer), left (closed its transport), broken (alive, but its connections broke), late (alive, but
            elsewhere), cycle (they wait for each other), slow (so they do, but bytes still move), given-up (this
            rank: others go on without it), alone (no other rank answers this one).
        note: more about it, as in "ValueError: …" for a rank that failed, or where a late one is.
    """

    ranks: tuple[int, ...]
    reason: Reason
    note: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a rank waits for.

    Attributes:
        peers: ranks whose part is missing, as the world numbers them; but see `Transport.watch`.
        what: as in "to receive 4.00 MB, tag 3".
    """

    peers: frozenset[int]
    what: str

    def numbered(self, ranks: Sequence[int]) -> Wait:
        """Returns the same wait with peers as others number them: `ranks[r]` for rank r."""
        return Wait(frozenset(ranks[peer] for peer in self.peers), self.what)


@dataclass(frozen=True, slots=True)
class RankObserved:
    """What one rank knows of the others when a wait of its own has failed.

    Attributes:
        waits: for each rank that answered, the ranks it waits for (none: it is busy elsewhere).
        dead: ranks whose process has ended.
        silent: ranks that were asked and did not answer.
        left: ranks that closed their transport or failed, and the error of those that failed.
        places: where in its program a rank is.
    """

    waits: Mapping[int, Collection[int]] = field(default_factory=dict)
    dead: Collection[int] = ()
    silent: Collection[int] = ()
    left: Mapping[int, str] = field(default_factory=dict)
    places: Mapping[int, str] = field(default_factory=dict)


def reach(start: Iterable[int], waits: Mapping[int, Collection[int]]) -> set[int]:
    """Returns the ranks that a wait for `start` depends on, by who waits for whom."""
    reached: set[int] = set()
    frontier = set(start)
    while frontier:
        reached |= frontier
        frontier = {peer for rank in frontier for peer in waits.get(rank, ())} - reached
    return reached


def judge_gone(peers: Iterable[int], observed: RankObserved) -> Verdict | None:
    """Returns who is gone among those that a wait for `peers` depends on, the likeliest cause first.

    A rank that said why it failed comes before one that died, which comes before one that is silent: the others may
    be silent, or have left, because of it.
    """
    reached = reach(peers, observed.waits)
    failed = {rank for rank in reached if observed.left.get(rank)}
    if failed:
        notes = dict.fromkeys(observed.left[rank].rstrip(". ") for rank in sorted(failed))
        return Verdict(tuple(sorted(failed)), "failed", "; ".join(notes))
    gone: tuple[tuple[Reason, Collection[int]], ...] = (
        ("dead", set(observed.dead) - observed.left.keys()),  # its port is closed because it left
        ("silent", set(observed.silent) - observed.left.keys()),
        ("left", observed.left),
    )
    for reason, ranks in gone:
        if found := reached & set(ranks):
            return Verdict(tuple(sorted(found)), reason)
    return None


def judge_late(peers: Iterable[int], observed: RankObserved) -> Verdict:
    """Returns who is late, where all that a wait for `peers` depends on are alive; or that they wait in a cycle."""
    reached = reach(peers, observed.waits)
    late = sorted(rank for rank in reached if not observed.waits.get(rank))
    if not late:
        return Verdict(tuple(sorted(reached)), "cycle")
    places = dict.fromkeys(place for rank in late if (place := observed.places.get(rank)))
    return Verdict(tuple(late), "late", ", ".join(places))


def accuse(
    verdict: Verdict, *, waiting: Wait | None, deadline_s: float, rank: int | None = None
) -> PeerError:
    """Returns the error that a worker raises: who, what was waited for, what to do.

    Args:
        verdict: who is to blame for what.
        waiting: what the worker waited for.
        deadline_s: how long that was allowed to take.
        rank: the worker, which does not blame itself.
    """
    during = f" while this worker waited {waiting.what}" if waiting else ""
    others = [blamed for blamed in verdict.ranks if blamed != rank]
    if rank is not None and rank in verdict.ranks and verdict.reason not in ("cycle", "slow"):
        return PeerError(_own_sentence(verdict, rank, deadline_s), others)
    if verdict.reason == "alone":
        return PeerError(
            f"no other rank answers this one{during}: its network is down, or all others have ended. Look at the "
            "link of this host, and at the others' logs.",
            others,
        )
    sentence = _sentence(verdict, during, deadline_s)
    return PeerError(f"{name_ranks(verdict.ranks)} {sentence}", others)


def _sentence(verdict: Verdict, during: str, deadline_s: float) -> str:
    many = len(verdict.ranks) > 1
    have, do, their, they = ("have", "do", "their", "they") if many else ("has", "does", "its", "it")
    are, processes = ("are", "their processes have") if many else ("is", "its process has")
    at = f", in {verdict.note}" if verdict.note else ""
    sentences: Mapping[Reason, str] = {
        "failed": f"failed{during}: {verdict.note}. Look at {their} log.",
        "dead": f"died{during}: {processes} ended without a word, killed by a signal or by the system. Look at "
        f"{their} log, and in the system's for a lack of memory.",
        "silent": f"{do} not answer{during}; {they} {have} been stopped, or {their} network or host {are} down. "
        f"Look at {their} host; raise deadline_s, now {deadline_s:g} s, if {they} may be silent for longer.",
        "left": f"left{during}. Every worker must run the same number of steps: give each the same number of "
        "batches, and close only at the end.",
        "broken": f"{are} alive, but a connection to {them(many)} broke{during}. Look at the network between the "
        "hosts, and for a program that opens too many files.",
        "late": f"{are} alive but did not reach this point within {deadline_s:g} s{during}{at}. Look in {their} "
        f"program for a branch or a longer loop; raise late_s if {they} {are} only slow.",
        "cycle": f"wait for each other{during}: they disagree about the order, the sizes or the tags of what "
        "they send. Every worker must run the same collectives in the same order.",
        "slow": f"{are} alive, and bytes still moved between {them(many)} after {deadline_s:g} s{during}: the network "
        "is too slow for what is sent. Send less, as by compression, or raise late_s.",
        "given-up": f"{do} not answer{during}.",
    }
    return sentences[verdict.reason]


def them(many: bool) -> str:
    """Returns the pronoun for one or several ranks."""
    return "them" if many else "it"


def _own_sentence(verdict: Verdict, rank: int, deadline_s: float) -> str:
    if verdict.reason == "late":
        return (
            f"the other workers waited for this one (rank {rank}) for {deadline_s:g} s and ended: it was elsewhere in "
            "its program. Raise late_s if a step, a checkpoint or an evaluation may take longer."
        )
    if verdict.reason == "broken":
        return f"the other workers' connections to this one (rank {rank}) broke, and they ended. Look at the network."
    return (
        f"the other workers gave this one (rank {rank}) up: it did not answer them for some time. It was stopped or "
        "cut off, or its host was too busy; raise deadline_s if that may happen."
    )


def describe(verb: str, num_bytes: int, tag: int) -> str:
    """Returns what a point-to-point wait is for, as in "to receive 4.00 MB, tag 3"."""
    return f"to {verb} {print_size(num_bytes)}, tag {tag}"


def name_ranks(ranks: Iterable[int]) -> str:
    """Returns "rank 2" or "ranks 1, 2 and 5"."""
    names = [str(rank) for rank in ranks]
    if len(names) == 1:
        return f"rank {names[0]}"
    return f"ranks {', '.join(names[:-1])} and {names[-1]}"
