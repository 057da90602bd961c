"""One bucket's messages between neighbours: sent, checked on arrival, and done without where a neighbour is gone."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tightwire.architecture.allreduce.program import Transfer
from tightwire.architecture.gossip import Graph, round_program
from tightwire.architecture.gossip.header import HEADER_BYTES
from tightwire.errors import MismatchError, PeerError, TransportError
from tightwire.transport import Transport
from tightwire.transport.base import Work
from tightwire.transport.blame import Wait, name_ranks

logger = logging.getLogger(__name__)
_HEADER = struct.Struct("<iHHd")  # round, sender, what must be equal, push-sum weight
assert _HEADER.size == HEADER_BYTES


@dataclass
class Lost:
    """The workers that are gone, as far as this one knows; shared by all its buckets.

    Attributes:
        ranks: they neither send nor receive any more.
        resting: those that made their last round before the others, and wait for these to make theirs.
        ends_round: whether the loss of a worker is an error, for members are elastic and begin another world.
    """

    ranks: set[int] = field(default_factory=set)
    resting: set[int] = field(default_factory=set)
    ends_round: bool = False

    def add(self, rank: int, transport: Transport) -> None:
        """Notes, and says, that a worker is gone, unless it only rests.

        Args:
            rank: with which a transfer will never be complete.
            transport: of that transfer. Where it knows that somebody has ended the run, all transfers end, and whom
                they were with is not to blame.

        Raises:
            PeerError: names who has ended the run; or the worker, which is gone, and `ends_round`.
        """
        watch = transport.watch(Wait(frozenset({rank}), "for gossip"))
        try:
            watch.check()
        finally:
            watch.close()
        if rank not in self.ranks | self.resting:
            if self.ends_round:
                raise PeerError(f"{name_ranks([rank])} is gone", [rank])
            self.ranks.add(rank)
            logger.warning(
                "%s is gone; its neighbours give its weight to themselves and go on without it",
                name_ranks([rank]),
            )


@dataclass
class Likeness:
    """What must be equal on all workers in a round; shared by all buckets.

    Attributes:
        digest: 16 bits of it.
        words: the same in words, for the error.
    """

    digest: int = 0
    words: Callable[[], str] = str


@dataclass(frozen=True)
class Heard:
    """A message that came in.

    Attributes:
        weight: the mixing matrix's.
        share: what the sender wrote: its push-sum weight.
        payload: the codec's message; to be read before the next one is asked for.
    """

    weight: float
    share: float
    payload: Tensor


class Neighbours:
    """Sends one message to, and takes one from, every neighbour in a round.

    Contract: every rank runs the same rounds. A neighbour that died or left is noted in `lost`; its weight falls to
    this worker's own value, here and in all rounds to come.

    Attributes:
        graph: who they are.
        rank: this worker.
        tag: tells buckets over one transport apart.
        bytes_sent: payload and headers handed to the transport so far, by formula.
        awaited: whom a message is awaited from or being sent to at present; for whoever waits for this.
    """

    def __init__(
        self, graph: Graph, transport: Transport, lost: Lost, *, tag: int, standing: Likeness | None = None
    ) -> None:
        self.graph, self.rank, self.lost = graph, transport.rank, lost
        self._standing = standing or Likeness()
        self._digest = 0
        self.bytes_sent = 0
        self.awaited: frozenset[int] = frozenset()
        self._transport, self.tag = transport, tag
        self._outgoing = torch.empty(0, dtype=torch.uint8)
        self._landings: dict[int, Tensor] = {}

    def message(self, num_bytes: int) -> Tensor:
        """Returns memory for this round's message, (num_bytes,) uint8; the next round's comes in its place."""
        self._outgoing = _sized(self._outgoing, HEADER_BYTES + num_bytes)
        return self._outgoing[HEADER_BYTES:]

    def exchange(self, round_number: int, *, share: float = 1.0, pushes: bool = False) -> Iterator[Heard]:
        """Sends the message to all neighbours, and then yields theirs, by rank, as they come.

        Args:
            round_number: the same on every rank.
            share: for whoever pushes.
            pushes: weights are the sender's equal shares (push-sum) instead of the mixing matrix's.

        Raises:
            TransportError: a message of another round or sender than was due.
            MismatchError: a neighbour's rates are not this worker's, or it left out a pass.
        """
        mixing = self.graph.at(round_number)
        if pushes:
            mixing = mixing.pushed
        program = round_program(mixing)
        absent = self.lost.ranks | self.lost.resting
        self._digest = self._standing.digest
        self._outgoing[:HEADER_BYTES] = _bytes(_HEADER.pack(round_number, self.rank, self._digest, share))
        sources = [t for t in program.receives(self.rank) if t.src not in absent]
        receives = [(t, self._transport.irecv(self._landing(t.src), t.src, self.tag)) for t in sources]
        sends = [
            (t.dst, self._transport.isend(self._outgoing, t.dst, self.tag))
            for t in program.sends(self.rank)
            if t.dst not in absent
        ]
        self.bytes_sent += len(sends) * len(self._outgoing)
        return self._arrivals(round_number, receives, sends)

    def move(self, transport: Transport) -> None:
        """Goes on over another channel, with nothing under way."""
        self._transport = transport

    def _arrivals(
        self,
        round_number: int,
        receives: Sequence[tuple[Transfer, Work]],
        sends: Sequence[tuple[int, Work]],
    ) -> Iterator[Heard]:
        for t, work in receives:
            self.awaited = frozenset({t.src})
            if work.attend():
                landing = self._landings[t.src]
                yield Heard(t.weight, self._read(landing, t.src, round_number), landing[HEADER_BYTES:])
            else:
                self.lost.add(t.src, self._transport)
        for dst, work in sends:
            self.awaited = frozenset({dst})
            if not work.attend():
                self.lost.add(dst, self._transport)
        self.awaited = frozenset()

    def _landing(self, src: int) -> Tensor:
        self._landings[src] = _sized(
            self._landings.get(src, torch.empty(0, dtype=torch.uint8)), len(self._outgoing)
        )
        return self._landings[src]

    def _read(self, landing: Tensor, src: int, round_number: int) -> float:
        seen_round, seen_rank, digest, share = _HEADER.unpack(landing[:HEADER_BYTES].numpy().tobytes())
        if (seen_round, seen_rank) != (round_number, src):
            raise TransportError(
                f"rank {self.rank} waited for rank {src}'s message of gossip round {round_number}, and one of rank "
                f"{seen_rank}, round {seen_round} came: workers are not in the same step. Load the same checkpoint on "
                "all, and give each the same number of batches; nothing was applied."
            )
        if digest != self._digest:
            raise MismatchError(
                f"rank {src} and rank {self.rank} train unlike each other in gossip round {round_number}: their rates "
                f"differ, or one has left out a pass. Here: {self._standing.words()}. Compare with the message of rank "
                f"{src}; give every rank the same rates at the same time, and call run.skip() for a pass left out."
            )
        if not 0 < share < float("inf"):
            raise TransportError(
                f"rank {src}'s gossip message says that its weight is {share}: it is damaged, or of another version; "
                "nothing was applied."
            )
        return float(share)


def _sized(memory: Tensor, num_bytes: int) -> Tensor:
    return memory if len(memory) == num_bytes else torch.zeros(num_bytes, dtype=torch.uint8)


def _bytes(packed: bytes) -> Tensor:
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)
