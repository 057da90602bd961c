"""Averaging with one neighbour at a time, while both compute: who asks, and who answers whenever asked.

A worker asks one neighbour at a time, and answers all of them on threads that wait for nobody: an answer needs only
the shared model, locked for one pass over it. So whoever waits, waits for a thread that never waits in turn, and no
circle of waits can close, on an odd cycle or anywhere.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from tightwire.architecture.gossip.neighbours import Lost
from tightwire.errors import TransportError
from tightwire.transport import Transport

_HEADER = struct.Struct("<iiq")  # what, who asks, its how-manieth request
AVERAGE, DONE = 1, 2
REQUEST_TAG, VALUE_TAG, ANSWER_TAG = 0, 1, 2


class Shared:
    """A worker's model as its neighbours see it, between its own steps too.

    Attributes:
        flats: its buckets.
        lock: held for whole passes over them.
    """

    def __init__(self, flats: Sequence[Tensor]) -> None:
        self.flats = tuple(flats)
        self.lock = threading.Lock()
        self.num_bytes = sum(flat.nbytes for flat in flats)

    def write(self, out: Tensor) -> None:
        """Copies the model to `out`, (num_bytes,) uint8."""
        with self.lock:
            self._copy(out)

    def meet(self, theirs: Tensor, before: Tensor) -> None:
        """Goes half the way to `theirs`, and writes to `before` where it was."""
        with self.lock:
            self._copy(before)
            self._move(theirs, before)

    def follow(self, theirs: Tensor, mine: Tensor) -> None:
        """Goes by half of what lay between `theirs` and `mine`, where this worker was when it asked."""
        with self.lock:
            self._move(theirs, mine)

    def _copy(self, out: Tensor) -> None:
        start = 0
        for flat in self.flats:
            out[start : start + flat.nbytes].view(flat.dtype).copy_(flat)
            start += flat.nbytes

    def _move(self, theirs: Tensor, mine: Tensor) -> None:
        start = 0
        for flat in self.flats:
            end = start + flat.nbytes
            flat.add_(theirs[start:end].view(flat.dtype), alpha=0.5)
            flat.sub_(mine[start:end].view(flat.dtype), alpha=0.5)
            start = end


class Pairs:
    """Averages with neighbours, pair by pair: (xᵢ, xⱼ) ← both (xᵢ + xⱼ)/2, up to what changed meanwhile.

    The asker sends xᵢ and goes on; the answerer moves by (xᵢ − xⱼ)/2 and sends back the xⱼ it had; the asker then
    moves by (xⱼ − xᵢ)/2, with the xᵢ that it sent. The sum of both is the same as before, whatever else they did.

    Attributes:
        bytes_sent: payload bytes so far, by formula.
        awaited: whom the asker waits for at present, or all that may still ask, once it has stopped.
        answered: how many requests were answered.
    """

    def __init__(self, transport: Transport, shared: Shared, neighbours: Sequence[int], lost: Lost) -> None:
        """Takes a channel of its own; `start` begins to answer."""
        self.awaited: frozenset[int] = frozenset()
        self.answered = 0
        self._transport, self._shared, self._lost = transport, shared, lost
        self._neighbours = tuple(neighbours)
        self._mine = torch.zeros(shared.num_bytes, dtype=torch.uint8)
        self._theirs = torch.zeros_like(self._mine)
        self._asked = self._told_done = 0
        self._has_begun = False
        self._answering: set[int] = set()  # who may still ask
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    @property
    def bytes_sent(self) -> int:
        """Requests with their model, answers with theirs, and the last words."""
        headers = (self._asked + self._told_done) * _HEADER.size
        return headers + (self._asked + self.answered) * self._shared.num_bytes

    @property
    def living(self) -> list[int]:
        """The neighbours that are left."""
        return [rank for rank in self._neighbours if rank not in self._lost.ranks]

    def start(self) -> None:
        """Begins to answer every neighbour; does nothing where it has begun."""
        if self._has_begun:
            return
        self._has_begun = True
        self._answering.update(living := self.living)
        for rank in living:
            name = f"tightwire-answers-{rank}"
            threading.Thread(target=self._answer, args=(rank,), name=name, daemon=True).start()

    def ask(self, rank: int) -> bool:
        """Averages with one neighbour; blocks until it answered. Returns whether it did: if not, it is gone."""
        self.check()
        self.awaited = frozenset({rank})
        self._shared.write(self._mine)
        header = torch.frombuffer(bytearray(self._header(AVERAGE)), dtype=torch.uint8)
        hearing = self._transport.irecv(self._theirs, rank, ANSWER_TAG)
        telling = [
            self._transport.isend(header, rank, REQUEST_TAG),
            self._transport.isend(self._mine, rank, VALUE_TAG),
        ]
        self._asked += 1
        arrived = [work.attend() for work in (*telling, hearing)]
        if all(arrived):
            self._shared.follow(self._theirs, self._mine)
        else:
            self._lost.add(rank, self._transport)
        self.awaited = frozenset()
        return all(arrived)

    def stop(self) -> None:
        """Tells neighbours that no more requests will come, and answers until they have said so too.

        Contract: every rank; blocks.

        Raises:
            PeerError: names who has ended the run.
            TransportError: whatever else went wrong while answering; who may still ask is not waited for.
        """
        self.start()  # who never made a step answers too
        for rank in self.living:
            self.awaited = frozenset({rank})
            word = torch.frombuffer(bytearray(self._header(DONE)), dtype=torch.uint8)
            self._told_done += 1
            if not self._transport.isend(word, rank, REQUEST_TAG).attend():
                self._lost.add(rank, self._transport)
        with self._changed:
            while self._answering:
                self.check()
                self.awaited = frozenset(self._answering)
                self._changed.wait()
        self._has_begun = False
        self.awaited = frozenset()
        self.check()

    def check(self) -> None:
        """Raises whatever went wrong first while answering."""
        if self._failure is not None:
            raise self._failure

    def _header(self, what: int) -> bytes:
        return _HEADER.pack(what, self._transport.rank, self._asked)

    def _answer(self, rank: int) -> None:
        try:
            while self._serve_one(rank):
                self.answered += 1
        except BaseException as failure:  # whoever waits for this thread must learn of it
            self._failure = self._failure or failure  # what comes later may come of it
        with self._changed:
            self._answering.discard(rank)
            self._changed.notify_all()

    def _serve_one(self, rank: int) -> bool:
        """Answers one request; returns False after the last one, or once the neighbour is gone."""
        header = torch.zeros(_HEADER.size, dtype=torch.uint8)
        if not self._transport.irecv(header, rank, REQUEST_TAG).attend():
            self._lost.add(rank, self._transport)
            return False
        what, who, _ = _HEADER.unpack(header.numpy().tobytes())
        if who != rank or what not in (AVERAGE, DONE):
            raise TransportError(
                f"rank {self._transport.rank} answers rank {rank}, and a request of kind {what} by rank {who} came: "
                "another version, or another plan; nothing was applied."
            )
        if what == DONE:
            return False
        theirs, before = torch.zeros_like(self._mine), torch.empty_like(self._mine)
        if not self._transport.irecv(theirs, rank, VALUE_TAG).attend():
            self._lost.add(rank, self._transport)
            return False
        self._shared.meet(theirs, before)
        if not self._transport.isend(before, rank, ANSWER_TAG).attend():
            self._lost.add(rank, self._transport)
            return False
        return True
