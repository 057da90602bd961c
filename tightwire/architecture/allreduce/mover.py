"""Runs programs that are no all-reduce: reduce-scatter, all-gather, broadcast, reduce, all-to-all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tightwire.architecture.allreduce.buffers import Buffers, RunnerJob
from tightwire.architecture.allreduce.engine import part_runner, slots_for
from tightwire.architecture.allreduce.landing import Slots
from tightwire.architecture.allreduce.part import Receive, Send, part_of
from tightwire.architecture.allreduce.program import Program
from tightwire.architecture.allreduce.runner import HOST
from tightwire.architecture.allreduce.traffic import PIECE_BYTES, pieces_of, predict_bytes
from tightwire.compression import Identity
from tightwire.errors import ProgramError, TensorError
from tightwire.transport.base import Transport


class Mover:
    """Runs one of `COLLECTIVES` on buffers of one size and dtype, as they are: sums, not means, and no codec.

    Attributes:
        program: what is run.
        bytes_sent: payload bytes that this rank sends in one run.
    """

    def __init__(
        self,
        program: Program,
        transport: Transport,
        *,
        numel: int,
        dtype: torch.dtype,
        tag: int = 0,
        piece_bytes: int = PIECE_BYTES,
        device: torch.device = HOST,
    ) -> None:
        """Allocates all that runs will need.

        Args:
            program: for as many ranks as `transport` has; checked here.
            transport: not used by this call.
            numel: elements of the buffers to come; of an all-to-all, a multiple of the number of ranks.
            dtype: theirs.
            tag: tells what is under way on one transport together apart; the same on all ranks.
            piece_bytes: chunks travel in pieces of about this size at most.
            device: where the buffers are.

        Raises:
            ProgramError: a program that is wrong or for other numbers of ranks, or a size that cannot be shared.
        """
        size, self._rank = transport.size, transport.rank
        if program.num_ranks != size:
            raise ProgramError(
                f"{program.name} was built for {program.num_ranks} ranks; the transport has {size}."
            )
        self._swaps = program.goal == "all-to-all"
        if self._swaps and numel % size:
            raise ProgramError(f"all-to-all of {numel} elements: {size} ranks need a multiple of {size}.")
        self.program, self._numel, self._dtype, self._size = program, numel, dtype, size
        whole, codec = numel * size if self._swaps else numel, Identity()
        self.bytes_sent = predict_bytes(program, codec, whole, dtype.itemsize, transport.rank, piece_bytes)
        pieces = pieces_of(program, codec, whole, dtype.itemsize, piece_bytes)
        job = RunnerJob(
            program=program,
            rank=transport.rank,
            codec=codec,
            numel=whole,
            dtype=dtype,
            pieces=pieces,
            device=device,
        )
        part = part_of(program, transport.rank, pieces, tag)
        self._buffers = SumBuffers(job, transport, slots_for(part, transport, device.type))
        self._of_chunk = pieces.of_chunk
        self._engine = (
            part_runner(part, transport, self._buffers, len(pieces.sizes), device.type)
            if whole and size > 1
            else None
        )

    def chunk(self, buffer: Tensor, chunk: int) -> Tensor:
        """Returns a chunk's part of a buffer: of a reduce-scatter, rank r ends with the sum in chunk r."""
        sizes = self.program.chunk_sizes(self._numel)
        return buffer.narrow(0, sum(sizes[:chunk]), sizes[chunk])

    def run(self, buffer: Tensor, landing: Tensor | None = None) -> None:
        """Moves, and leaves in `buffer` what this rank ends with; where it ends with nothing, partial sums.

        Contract: blocks; called by every rank in the same order per transport. Sends `bytes_sent`.

        Args:
            buffer: (numel,) contiguous; of an all-to-all, block d is for rank d and stays.
            landing: of an all-to-all, (numel,) contiguous other memory; block s comes from rank s.

        Raises:
            TensorError: buffers of another size, dtype or layout than announced, or a landing too many or missing.
            PeerError: a rank did not take part within the deadline.
        """
        self._check(buffer, landing)
        if landing is not None:
            block = self._numel // self._size
            landing.narrow(0, self._rank * block, block).copy_(buffer.narrow(0, self._rank * block, block))
        if self._engine is not None:
            self._buffers.place(buffer if landing is None else self._rows(buffer, landing))
            self._engine.run(buffer, buffer, 0)

    def _rows(self, buffer: Tensor, landing: Tensor) -> list[Tensor]:
        """Returns where each piece of the n² chunks of an all-to-all lies; others' nowhere."""
        nowhere = buffer[:0]
        views: list[Tensor] = []
        leaving, coming = buffer.chunk(self._size), landing.chunk(self._size)
        for chunk, of_chunk in enumerate(self._of_chunk):
            src, dst = divmod(chunk, self._size)
            if self._rank in (src, dst):
                block = leaving[dst] if src == self._rank else coming[src]
                views += block.split_with_sizes([self._buffers.sizes[piece] for piece in of_chunk])
            else:
                views += [nowhere] * len(of_chunk)
        return views

    def _check(self, buffer: Tensor, landing: Tensor | None) -> None:
        if self._swaps != (landing is not None):
            needs = (
                "a landing of its own: nothing moves in place"
                if self._swaps
                else "no landing: it moves in place"
            )
            raise TensorError(f"{self.program.name} needs {needs}.")
        for tensor in (buffer, landing):
            if tensor is not None and (
                tensor.shape != (self._numel,) or tensor.dtype != self._dtype or not tensor.is_contiguous()
            ):
                raise TensorError(
                    f"{self.program.name} was given a {tensor.dtype} tensor of shape {tuple(tensor.shape)}; it was "
                    f"built for a contiguous {self._dtype} one of ({self._numel},)."
                )


class SumBuffers(Buffers):
    """Values as they are, summed in place and not divided, wherever they were placed."""

    def __init__(self, job: RunnerJob, transport: Transport, num_slots: int) -> None:
        self.sizes, self._dtype = list(job.pieces.sizes), job.dtype
        largest = max(self.sizes, default=0) * job.dtype.itemsize
        self._slots = Slots(transport, num_slots, largest, job.device)
        self._views: Sequence[Tensor] = ()

    def place(self, where: Tensor | Sequence[Tensor]) -> None:
        """Says where the pieces of the next run are."""
        self._views = where.split_with_sizes(self.sizes) if isinstance(where, Tensor) else where

    def begin(self, work: Tensor, mean: Tensor, seed: int) -> None:
        """Finds all in place."""
        self._slots.begin()

    def outgoing(self, send: Send) -> Tensor:
        """Returns the values themselves."""
        return self._views[send.piece]

    def landing(self, receive: Receive, slot: int) -> Tensor:
        """Returns a slot for what is added, the place itself for a copy."""
        piece = receive.piece
        return self._views[piece] if receive.op == "copy" else self._landed(piece, slot)

    def arrived(self, receive: Receive, slot: int) -> None:
        """Adds what landed."""
        if receive.op == "reduce":
            self._views[receive.piece].add_(self._landed(receive.piece, slot))

    def finish(self) -> None:
        """Forgets the buffers of the run."""
        self._views = ()
        self._slots.end()

    def _landed(self, piece: int, slot: int) -> Tensor:
        return self._slots[slot].view(self._dtype)[: self.sizes[piece]]
