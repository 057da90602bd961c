"""Agreeing among those who are left: who they are, and the exact mean of what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from tightwire.architecture.allreduce.exact import exact_bytes, exact_runner
from tightwire.architecture.gossip.neighbours import Lost
from tightwire.transport import Transport
from tightwire.transport.base import Work
from tightwire.transport.wrapper import Wrapper

ROLL_TAG = 0
MEAN_TAG = 1


class Survivors:
    """Calls the roll, and averages over those who answered.

    Attributes:
        bytes_sent: payload bytes of rolls and means so far, by formula.
        awaited: whom it waits for at present.
    """

    def __init__(self, transport: Transport, lost: Lost) -> None:
        """Takes a channel of its own.

        Args:
            transport: over all ranks there ever were.
            lost: who is known to be gone; others are added.
        """
        self.bytes_sent = 0
        self.awaited: frozenset[int] = frozenset()
        self._transport, self._lost = transport, lost

    def close(self) -> None:
        """Gives the channel back."""
        self._transport.close()

    def roll(self) -> tuple[int, ...]:
        """Returns the ranks that are left, the same on all of them.

        Contract: all of them; blocks. The lowest rank that lives asks, n bytes to each that answers with one; if it
        dies meanwhile, the next one does.
        """
        for root in range(self._transport.size):
            if root == self._transport.rank:
                return self._ask()
            if root not in self._lost.ranks and (living := self._answer(root)):
                return living
        raise AssertionError("a rank that calls the roll is there")

    def average(self, flats: Sequence[Tensor]) -> None:
        """Replaces every tensor by its mean over those who are left, bit-identical on all of them.

        Contract: all of them, with the same shapes; blocks.
        """
        living = self.roll()
        among = Among(self._transport, living)
        self.awaited = frozenset(living) - {self._transport.rank}
        for flat in flats:
            if len(living) > 1 and flat.numel():
                exact_runner(among, flat.numel(), flat.dtype, MEAN_TAG).run(flat, flat, seed=0)
                self.bytes_sent += exact_bytes(flat.numel(), flat.itemsize, among.size, among.rank)
        self.awaited = frozenset()

    def _ask(self) -> tuple[int, ...]:
        rank, size = self._transport.rank, self._transport.size
        others = [other for other in range(size) if other != rank and other not in self._lost.ranks]
        answer = torch.zeros(1, dtype=torch.uint8)
        here = {other: self._transport.irecv(answer.clone(), other, ROLL_TAG) for other in others}
        for other, work in here.items():
            self._attend(other, work)
        living = tuple(r for r in range(size) if r == rank or r in set(others) - self._lost.ranks)
        told = torch.tensor([r in living for r in range(size)], dtype=torch.uint8)
        sends = {other: self._transport.isend(told, other, ROLL_TAG) for other in living if other != rank}
        self.bytes_sent += len(sends) * size
        for other, work in sends.items():
            self._attend(other, work)
        return living

    def _answer(self, root: int) -> tuple[int, ...]:
        """Returns what the root says, or nothing if it is gone."""
        told = torch.zeros(self._transport.size, dtype=torch.uint8)
        hearing = self._transport.irecv(told, root, ROLL_TAG)
        telling = self._transport.isend(torch.ones(1, dtype=torch.uint8), root, ROLL_TAG)
        self.bytes_sent += 1
        if not (self._attend(root, telling) and self._attend(root, hearing)):
            return ()
        for rank, is_here in enumerate(told.tolist()):
            if not is_here:
                self._lost.add(rank, self._transport)
        return tuple(rank for rank, is_here in enumerate(told.tolist()) if is_here)

    def _attend(self, peer: int, work: Work) -> bool:
        self.awaited = frozenset({peer})
        arrived = work.attend()
        self.awaited = frozenset()
        if not arrived:
            self._lost.add(peer, self._transport)
        return arrived


@final
class Among(Wrapper):
    """A transport seen by some of its ranks only, for messages between two; they are renumbered in the order given."""

    def __init__(self, inner: Transport, ranks: Sequence[int]) -> None:
        super().__init__(inner)
        self.rank, self.size = ranks.index(inner.rank), len(ranks)
        self._ranks = tuple(ranks)

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Sends to the rank so numbered."""
        return self.inner.isend(tensor, self._ranks[dst], tag)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Receives from the rank so numbered."""
        return self.inner.irecv(tensor, self._ranks[src], tag)

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Leaves channels and groups as they are: nothing here opens any."""
        return child
