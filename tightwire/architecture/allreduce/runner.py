"""Runs one rank's part of a program over a transport."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.architecture.allreduce.accuracy import error_of_mean
from tightwire.architecture.allreduce.buffers import (
    Buffers,
    DenseBuffers,
    GatherBuffers,
    MessageBuffers,
    RunnerJob,
)
from tightwire.architecture.allreduce.engine import Running, part_runner, slots_for
from tightwire.architecture.allreduce.part import part_of
from tightwire.architecture.allreduce.program import Program
from tightwire.architecture.allreduce.traffic import PIECE_BYTES, pieces_of, predict_bytes
from tightwire.buckets import dtype_named
from tightwire.compression.codec import Codec
from tightwire.errors import ProgramError, TensorError
from tightwire.transport.base import Transport

# Where buffers are unless something else is said.
HOST = torch.device("cpu")


class Runner:
    """Averages buffers of one size and dtype over all ranks, by a program and a codec.

    Attributes:
        program: what is run.
        codec: what travels.
        lossless: `mean` is exact up to rounding, `work` and `mean` may be the same memory, and no leftover is
            written: it is zero.
        delivery: what arrives of a buffer.
        error: the declared relative squared error of the mean; see `error_of_mean`.
        bytes_sent: payload bytes that this rank sends in one run.
        spared_bytes: none: sizes are known.
    """

    spared_bytes = 0

    def __init__(
        self,
        program: Program,
        transport: Transport,
        *,
        numel: int,
        dtype: torch.dtype,
        codec: Codec,
        tag: int = 0,
        piece_bytes: int = PIECE_BYTES,
        device: torch.device = HOST,
    ) -> None:
        """Allocates all that runs will need.

        Args:
            program: for as many ranks as `transport` has; checked here.
            transport: not used by this call.
            numel: elements of the buffers to come.
            dtype: theirs: float32, float64, bfloat16 or float16.
            codec: whose messages the program can carry.
            tag: tells runners apart that are under way on one transport together; the same on all ranks.
            piece_bytes: chunks travel in pieces of at most this size: one is added while the next arrives.
            device: where the buffers are.

        Raises:
            ProgramError: a program that is wrong, cannot carry the codec, or is for other numbers of ranks.
        """
        _check_fit(program, transport, codec)
        self.program, self.codec = program, codec
        self.lossless, self.delivery = codec.lossless, codec.delivery
        self._numel, self._dtype = numel, dtype
        self.error: float | None = (
            error_of_mean(program, codec, numel) if program.goal == "all-reduce" else None
        )
        self.bytes_sent = predict_bytes(program, codec, numel, dtype.itemsize, transport.rank, piece_bytes)
        pieces = pieces_of(program, codec, numel, dtype.itemsize, piece_bytes)
        job = RunnerJob(
            program=program,
            rank=transport.rank,
            codec=codec,
            numel=numel,
            dtype=dtype,
            pieces=pieces,
            device=device,
        )
        self._way = _way(job, transport, tag) if numel and transport.size > 1 else None

    def run(self, work: Tensor, mean: Tensor, *, seed: int = 0) -> None:
        """Averages `work` over all ranks into `mean`, and leaves in `work` what this rank failed to carry.

        Afterwards mean == average over ranks of (input − leftover), the same bits on every rank.

        Args:
            work: (numel,) contiguous; this rank's input, then its leftover. A lossless codec writes none.
            mean: (numel,) contiguous; other memory than `work` unless the codec is lossless.
            seed: of stochastic codecs, the same on every rank.

            ProgramError: a program that is wrong, cannot carry the codec, or is for other ranks.
        a transport. Sends `bytes_sent`.

        Raises:
            TensorError: buffers of another size, dtype or layout than announced.
            PeerError: a rank did not take part within the deadline.
        """
        self._check(work, mean)
        if self._way is not None:
            self._way.run(work, mean, seed)
            return
        if mean.data_ptr() != work.data_ptr():
            mean.copy_(work)
            if not self.lossless:
                work.zero_()

    def keep(self) -> None:
        """Does nothing: a run leaves nothing to remember."""

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing; see `keep`."""
        return {}

    def _check(self, work: Tensor, mean: Tensor) -> None:
        for name, tensor in (("work", work), ("mean", mean)):
            if tensor.shape != (self._numel,) or tensor.dtype != self._dtype or not tensor.is_contiguous():
                raise TensorError(
                    f"{name} is a {tensor.dtype} tensor of shape {tuple(tensor.shape)}; this runner was built "
                    f"for a contiguous {self._dtype} one of ({self._numel},)."
                )
        if not self.lossless and self._numel and work.data_ptr() == mean.data_ptr():
            raise TensorError(
                f"work and mean are the same memory; {self.codec} leaves a leftover and needs two."
            )


def _check_fit(program: Program, transport: Transport, codec: Codec) -> None:
    if program.num_ranks != transport.size:
        raise ProgramError(
            f"{program.name} was built for {program.num_ranks} ranks, and the transport has "
            f"{transport.size}: build it for {transport.size}."
        )
    if codec.combine == "none" and not program.gathers:
        raise ProgramError(
            f"{codec} cannot travel by {program.name}: its messages have no elementwise sum. Use allgather."
        )
    if program.native and codec.sums_as is None:
        raise ProgramError(
            f"{codec} cannot travel by {program.name}: no backend sums its messages. Use ring."
        )


def _way(job: RunnerJob, transport: Transport, tag: int) -> Running:
    if job.program.native:
        return _Native(job, transport)
    part = part_of(job.program, job.rank, job.pieces, tag)
    slots = slots_for(part, transport, job.device.type)
    if job.program.gathers:
        buffers: Buffers = GatherBuffers(job)
    elif job.codec.sums_as == "" and job.codec.lossless:
        buffers = DenseBuffers(job, transport, slots)
    else:
        buffers = MessageBuffers(job, transport, slots)
    return part_runner(part, transport, buffers, len(job.pieces.sizes), job.device.type)


class _Native:
    """Leaves the sum to the backend."""

    def __init__(self, job: RunnerJob, transport: Transport) -> None:
        self._transport, self._codec = transport, job.codec
        name = job.codec.sums_as or str(job.dtype).removeprefix("torch.")
        if name not in transport.native_dtypes:
            raise ProgramError(
                f"{job.codec} cannot travel by native: this backend does not sum {name}, only "
                f"{', '.join(sorted(transport.native_dtypes))}. Use ring."
            )
        self._sums_as = dtype_named(name)
        in_place = job.codec.sums_as == "" and job.codec.lossless
        num_bytes = 0 if in_place else job.codec.wire_bytes(job.numel, job.dtype.itemsize)
        self._message = None if in_place else torch.empty(num_bytes, dtype=torch.uint8, device=job.device)

    def run(self, work: Tensor, mean: Tensor, seed: int) -> None:
        if self._message is None:
            if mean.data_ptr() != work.data_ptr():
                mean.copy_(work)
            self._transport.all_reduce(mean).wait()
        else:
            divides_first = self._codec.largest is not None
            if divides_first:
                work.div_(self._transport.size)
            self._codec.encode(work, self._message, seed=seed)
            self._transport.all_reduce(self._message.view(self._sums_as)).wait()
            self._codec.decode(self._message, mean)
            if divides_first:
                work.mul_(self._transport.size)
                return
        mean.div_(self._transport.size)
