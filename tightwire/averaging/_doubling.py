"""Recursive doubling seen from one rank: who swaps sums with whom, and how many contributions a sum has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Move:
    """One step of one rank.

    Attributes:
        peer: with whom.
        sent: contributions in the sum that is sent to the peer; 0: nothing is sent.
        received: contributions in the sum that comes; 0: nothing comes.
        replaces: what comes is everybody's sum, and takes the place of this rank's; else both are added.
        holders: ranks that hold the same sum afterwards and have it from a merge of their own.
    """

    peer: int
    sent: int = 0
    received: int = 0
    replaces: bool = False
    holders: int = 1


def doubling_moves(workers: int, rank: int) -> list[Move]:
    """Returns the steps of `rank`; ranks beyond the largest power of two hand theirs to a partner, and get the sum.

    >>> [(move.peer, move.sent, move.received) for move in doubling_moves(3, 0)]
    [(2, 0, 1), (1, 2, 1), (2, 3, 0)]
    """
    core = 1 << (workers.bit_length() - 1)
    if rank >= core:
        return [Move(peer=rank - core, sent=1), Move(peer=rank - core, received=workers, replaces=True)]
    has_guest = rank + core < workers
    moves = [Move(peer=rank + core, received=1)] if has_guest else []
    width = 1
    while width < core:
        peer = rank ^ width
        sent, received = (_contributions(workers, core, end, width) for end in (rank, peer))
        width *= 2
        moves.append(Move(peer=peer, sent=sent, received=received, holders=width))
    return [*moves, Move(peer=rank + core, sent=workers)] if has_guest else moves


def _contributions(workers: int, core: int, rank: int, width: int) -> int:
    """Returns how many workers' values are in the sum of an aligned block of `width` ranks and their guests."""
    first = rank // width * width
    guests = max(0, min(first + width, workers - core) - first)
    return width + guests
