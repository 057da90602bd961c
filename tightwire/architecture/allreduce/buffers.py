"""The buffers of a collective's pieces: values, messages summed on the way, or messages gathered.

Buffers are allocated once.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightwire.architecture.allreduce.landing import Slots
from tightwire.architecture.allreduce.losses import share_of_loss
from tightwire.architecture.allreduce.part import Encode, Receive, Send
from tightwire.architecture.allreduce.program import Program
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.allreduce.traffic import ALIGN_BYTES, Pieces, message_sizes
from tightwire.compression.codec import Codec
from tightwire.transport import Transport


@dataclass(frozen=True, kw_only=True)
class RunnerJob:
    """What a runner is for."""

    program: Program
    rank: int
    codec: Codec
    numel: int
    dtype: torch.dtype
    pieces: Pieces
    device: torch.device


class Buffers(abc.ABC):
    """One rank's buffers, as the engine sees them: it moves what this hands out and reports what came."""

    @abc.abstractmethod
    def begin(self, work: Tensor, mean: Tensor, seed: int) -> None:
        """Takes the buffers of one run."""

    @abc.abstractmethod
    def outgoing(self, send: Send) -> Tensor:
        """Returns the bytes to send, encoded now if need be; they stay until the piece changes."""

    @abc.abstractmethod
    def landing(self, receive: Receive, slot: int) -> Tensor:
        """Returns where to receive; `slot` is free until the piece is taken in."""

    @abc.abstractmethod
    def arrived(self, receive: Receive, slot: int) -> None:
        """Takes in what landed."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Completes the mean, all pieces being in."""


class DenseBuffers(Buffers):
    """Values as they are, summed in place in `mean`."""

    def __init__(self, job: RunnerJob, transport: Transport, num_slots: int) -> None:
        self._sizes = list(job.pieces.sizes)
        self._num_ranks = job.program.num_ranks
        self._dtype = job.dtype
        largest = max(self._sizes, default=0) * job.dtype.itemsize
        self._slots = Slots(transport, num_slots, largest, job.device)
        self._views: Sequence[Tensor] = ()

    def begin(self, work: Tensor, mean: Tensor, seed: int) -> None:
        """Works on `mean` in place."""
        self._slots.begin()
        if mean.data_ptr() != work.data_ptr():
            mean.copy_(work)
        self._views = mean.split_with_sizes(self._sizes)

    def outgoing(self, send: Send) -> Tensor:
        """Returns the values themselves."""
        return self._views[send.piece]

    def landing(self, receive: Receive, slot: int) -> Tensor:
        """Returns a slot for what is added, the place itself for a finished sum."""
        # A finished sum arrives only after all that this rank gave to it was taken: its place is free then.
        return self._views[receive.piece] if receive.op == "copy" else self._landed(receive.piece, slot)

    def arrived(self, receive: Receive, slot: int) -> None:
        """Adds what landed."""
        if receive.op == "copy":
            return
        value = self._views[receive.piece].add_(self._landed(receive.piece, slot))
        if receive.completes:
            value.div_(self._num_ranks)

    def finish(self) -> None:
        """Forgets the buffers of the run."""
        self._views = ()
        self._slots.end()

    def _landed(self, piece: int, slot: int) -> Tensor:
        return self._slots[slot].view(self._dtype)[: self._sizes[piece]]


class MessageBuffers(Buffers):
    """Messages that are decoded, added and encoded again on their way; losses stay in their maker's `work`.

    A value begins in `work`. Once encoded, `work` keeps what the message does not carry, and the value is the
    message; added to, it is decoded into `mean`. A finished value travels on as the message that it came in.
    """

    def __init__(self, job: RunnerJob, transport: Transport, num_slots: int) -> None:
        self._codec, self._num_ranks = job.codec, job.program.num_ranks
        self._sizes = list(job.pieces.sizes)
        self._bytes = message_sizes(job.program, job.codec, job.pieces, job.dtype.itemsize)
        self._messages = _aligned(self._bytes, job.device)
        self._slots = Slots(transport, num_slots, max(self._bytes, default=0), job.device)
        self._work: Sequence[Tensor] = ()
        self._mean: Sequence[Tensor] = ()
        self._seed = 0
        # Where a sum would not fit the format, values are divided by n before they are encoded, and not after.
        self._divides_first = job.codec.largest is not None
        self._whole = torch.empty(0)

    def begin(self, work: Tensor, mean: Tensor, seed: int) -> None:
        """Takes the buffers piece by piece."""
        self._slots.begin()
        if self._codec.lossless and mean.data_ptr() == work.data_ptr():
            work = work.clone()
        if self._divides_first:
            self._whole = work.div_(self._num_ranks)
        self._work, self._mean, self._seed = (
            work.split_with_sizes(self._sizes),
            mean.split_with_sizes(self._sizes),
            seed,
        )

    def outgoing(self, send: Send) -> Tensor:
        """Returns the message, encoded unless it exists."""
        if send.encode:
            self._encode(send.piece, send.encode)
        return self._messages[send.piece]

    def landing(self, receive: Receive, slot: int) -> Tensor:
        """Returns a slot for what is added, the message's own place for a finished sum."""
        if receive.op == "copy":
            return self._messages[receive.piece]
        return self._slots[slot][: self._bytes[receive.piece]]

    def arrived(self, receive: Receive, slot: int) -> None:
        """Decodes and adds, or decodes the finished sum."""
        piece = receive.piece
        if receive.op == "copy":
            self._codec.decode(self._messages[piece], self._mean[piece])
            return
        self._add(receive, self._slots[slot][: self._bytes[piece]])
        if receive.completes and not self._divides_first:
            (self._work if receive.place == "work" else self._mean)[piece].div_(self._num_ranks)
        if receive.encode:
            self._encode(piece, receive.encode)
            self._codec.decode(self._messages[piece], self._mean[piece])

    def finish(self) -> None:
        """Forgets the buffers of the run."""
        if self._divides_first:
            self._whole.mul_(self._num_ranks)  # what is left over, in units of what came in
        self._work = self._mean = ()
        self._slots.end()

    def _add(self, receive: Receive, message: Tensor) -> None:
        work, mean = self._work[receive.piece], self._mean[receive.piece]
        if receive.place == "message":
            own = self._messages[receive.piece]
            first, second = (own, message) if receive.own_first else (message, own)
            self._codec.decode(first, mean)
            self._codec.decode(second, mean, add=True)
        else:
            self._codec.decode(message, work if receive.place == "work" else mean, add=True)

    def _encode(self, piece: int, how: Encode) -> None:
        work, source = self._work[piece], (self._work if how.place == "work" else self._mean)[piece]
        # Messages that combine exactly must draw alike on all ranks, such as the same random places.
        whose = 0 if self._codec.combine == "exact" else how.value + 1
        self._codec.encode(source, self._messages[piece], seed=message_seed(self._seed, whose, piece))
        if self._codec.lossless:
            return
        divided_by = self._num_ranks if how.complete and not self._divides_first else 1
        share = share_of_loss(makers=how.makers, divided_by=divided_by)
        if how.place == "mean":
            work.add_(source, alpha=share)
        elif share != 1.0:
            work.mul_(share)


class GatherBuffers(Buffers):
    """Whole messages, one per rank, that everybody decodes and adds in rank order."""

    def __init__(self, job: RunnerJob) -> None:
        self._codec, self._rank = job.codec, job.rank
        self._messages = _aligned(
            [job.codec.wire_bytes(job.numel, job.dtype.itemsize)] * job.program.num_ranks, job.device
        )
        self._pieces: list[Tensor] = []
        for message, of_chunk in zip(self._messages, job.pieces.of_chunk, strict=True):
            self._pieces += message.split_with_sizes([job.pieces.sizes[piece] for piece in of_chunk])
        self._mean = torch.empty(0)

    def begin(self, work: Tensor, mean: Tensor, seed: int) -> None:
        """Encodes the whole buffer."""
        self._mean = mean
        whose = 0 if self._codec.combine == "exact" else self._rank + 1
        self._codec.encode(work, self._messages[self._rank], seed=message_seed(seed, whose, 0))

    def outgoing(self, send: Send) -> Tensor:
        """Returns a piece of this rank's message."""
        return self._pieces[send.piece]

    def landing(self, receive: Receive, slot: int) -> Tensor:
        """Returns a piece of the sender's message."""
        return self._pieces[receive.piece]

    def arrived(self, receive: Receive, slot: int) -> None:
        """Decoding waits for `finish`: the order of addition is by rank, not by arrival."""

    def finish(self) -> None:
        """Decodes and adds all messages, by rank."""
        for rank, message in enumerate(self._messages):
            self._codec.decode(message, self._mean, add=rank > 0)
        self._mean.div_(len(self._messages))


def _aligned(sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """Allocates byte buffers in one block, each where any dtype may begin."""
    padded = [-(-size // ALIGN_BYTES) * ALIGN_BYTES for size in sizes]
    block = torch.empty(sum(padded), dtype=torch.uint8, device=device)
    return (
        [view[:size] for view, size in zip(block.split_with_sizes(padded), sizes, strict=True)]
        if sizes
        else []
    )
