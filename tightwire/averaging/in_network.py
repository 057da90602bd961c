"""Averaging by a switch that adds integers, and by the hosts where it does not."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from tightwire import kernels
from tightwire.answers import Delivery
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.allreduce.switched import chunk_numel, integer_bytes, num_chunks, switched_bytes
from tightwire.averaging._messages import swap_all
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout
from tightwire.compression import Codec
from tightwire.compression._normal import largest as largest_normal
from tightwire.compression._normal import rounding_to_steps
from tightwire.errors import PlanError
from tightwire.transport import Switched, Transport
from tightwire.transport.switched import Streamed

# Chunks whose largest magnitude is below this stay in the leftover: their step would have no finite inverse.
FLOOR = 2.0**-90
INFINITY_BITS = 0x7F800000
FLOAT_ERROR = 2.0**-48  # of a mean in float32
_CODES = {1: torch.int8, 4: torch.int32}
_SUMS = {1: torch.int16, 4: torch.int32}
_LOST = 1 << 40


@final
class InNetworkAverager(StatelessAverager):
    """Sends integers up, takes their sums from the switch, and adds with the other hosts what the switch did not.

    All workers round a chunk to multiples of one step, agreed from the largest magnitude among them, so that integers
    may be added without being decoded: of values as they are 31 bits less log₂ n, by a step that is a power of two, so
    that what is lost is the multiple of 2⁻²⁹ or so of the chunk's largest; of `int8` its 8 bits, with sums of 16 (THC,
    NSDI 2024, does so with rotated values). What rounding loses is the sender's leftover. Buckets of 16 bits travel as
    integers of 32.

    Integer sums are the same in any order and by any way. So what the switch refused, or had not answered when it was
    lost, is added by the backend's all-reduce of the same integers, and all workers have the same bits whichever way
    each of them got a chunk.
    """

    def __init__(self, codec: Codec, transport: Transport, bucket: BucketLayout, tag: int) -> None:
        """Allocates what runs will need.

        Args:
            codec: none, or one of 8-bit integers.
            transport: a lane of `Architecture.connect`.
            bucket: of which size and dtype.
            tag: the first of those that are the averager's own.

        Raises:
            PlanError: a lane without a switch.
        """
        if not isinstance(transport, Switched):
            raise PlanError(
                "allreduce:in-network needs a lane with a line to the switch: connect it by the architecture."
            )
        levels = codec.shared_levels(transport.size)
        assert levels is not None, codec
        self._levels, self._stochastic = levels, codec.unbiased and not codec.lossless
        self._is_exact = codec.lossless
        self._lane, self._tag = transport, tag << TAG_BITS
        self._numel, self._dtype = bucket.numel, bucket.dtype
        slot_bytes = transport.switch.address.slot_bytes
        self._chunk = chunk_numel(codec, slot_bytes)
        self.itemsize = integer_bytes(codec)
        self.count = num_chunks(codec, bucket.numel, slot_bytes)
        # Views of every chunk, made once and not for every chunk on its way: there are thousands of them.
        codes = torch.empty(bucket.numel, dtype=_CODES[self.itemsize])
        self._codes: Sequence[Tensor] = codes.split(self._chunk)
        self._code_bytes: list[memoryview] = [part.view(torch.uint8).numpy().data for part in self._codes]
        self._wide = torch.empty(min(self._chunk, bucket.numel), dtype=torch.float32)
        self._work: Sequence[Tensor] = ()
        self._mean: Sequence[Tensor] = ()
        self._seed = 0
        self._encoded: set[int] = set()
        self.delivery: Delivery = "rounded"
        step = (
            (2.0 if codec.lossless else 1.0) * largest_normal(min(self._chunk, max(bucket.numel, 1))) / levels
        )
        self.error = rounding_to_steps(step, levels, stochastic=self._stochastic) + FLOAT_ERROR
        self.bytes_sent = switched_bytes(codec, bucket.numel, transport.size, slot_bytes)

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`."""
        if not self._numel:
            return
        if not bucket.is_cpu:  # the line to the switch begins at the host
            host, whole = bucket.cpu(), torch.empty(bucket.shape, dtype=bucket.dtype)
            self.run(host, whole, seed=seed)
            bucket.copy_(host)
            mean.copy_(whole)
            return
        self._work, self._mean = bucket.split(self._chunk), mean.split(self._chunk)
        self._seed = seed
        self._encoded.clear()
        lane, found = self._lane, Streamed(window=0)
        if lane.line is not None:
            found = lane.line.run(self, lane)
            lane.count_sent(self.bytes_sent - 8 * (lane.size - 1) if not found.lost else self._sent_of(found))
        self._agree(found)
        self._work = self._mean = ()

    # What a line asks of chunks.

    def largest(self, chunk: int) -> int:
        """Returns the bits of a chunk's largest magnitude; those of a NaN are the largest of all."""
        x = self._work[chunk]
        return int(kernels.of(x).largest_bits(x if x.dtype == torch.float32 else x.float()))

    def integers(self, chunk: int, largest: int) -> memoryview:
        """Returns a chunk rounded to the step that follows from the largest magnitude of all workers'."""
        self._encoded.add(chunk)
        codes, step = self._codes[chunk], self._step(largest)
        if step == 0.0 or math.isnan(step):
            codes.zero_()
        else:
            x = self._work[chunk]
            narrow = x.dtype != torch.float32
            wide = self._wide[: x.numel()].copy_(x) if narrow else x
            drawn = message_seed(self._seed, self._lane.rank + 1, chunk)
            kernels.of(wide).encode_fixed(wide, codes, step, self._levels, self._stochastic, drawn)
            if x.dtype == torch.float64:
                x.sub_(codes, alpha=step)
            elif narrow:
                x.copy_(wide)
        return self._code_bytes[chunk]

    def take(self, chunk: int, largest: int, sums: memoryview) -> None:
        """Takes in the sums of all workers' integers."""
        self._decode(chunk, largest, torch.frombuffer(sums, dtype=_SUMS[self.itemsize]))

    def _decode(self, chunk: int, largest: int, sums: Tensor) -> None:
        out, step = self._mean[chunk], self._step(largest) / self._lane.size
        if math.isnan(step):
            out.fill_(torch.nan)
        elif out.dtype == torch.float64:
            out.copy_(sums).mul_(step)
        elif out.dtype == torch.float32:
            kernels.of(out).decode_fixed(sums, out, step)
        else:
            wide = self._wide[: out.numel()]
            kernels.of(wide).decode_fixed(sums, wide, step)
            out.copy_(wide)

    def _step(self, largest: int) -> float:
        """Returns what an integer of a chunk stands for; 0 where nothing is sent, NaN where something is not finite."""
        if largest >= INFINITY_BITS:
            return math.nan
        most = float(struct.unpack("<f", struct.pack("<I", largest))[0])
        if most < FLOOR:
            return 0.0
        if not self._is_exact:
            return most / self._levels
        mantissa, exponent = math.frexp(most)  # most = mantissa · 2**exponent, 0.5 ≤ mantissa < 1
        return math.ldexp(1.0, exponent - (mantissa == 0.5)) / self._levels

    # What the hosts do.

    def _agree(self, found: Streamed) -> None:
        """Tells the other ranks how the run ended here, and adds with them what the switch did not."""
        lane, account = self._lane, self._lane.switch.account
        missing = self.count - len(found.added)
        own = torch.tensor([missing + (_LOST if lane.line is None or found.lost else 0)])
        told = [torch.zeros_like(own) for _ in range(lane.size)]
        swap_all(lane, [own] * lane.size, told, self._tag)
        told[lane.rank] = own
        others = [int(outcome) for outcome in told]
        is_lost = any(outcome >= _LOST for outcome in others)
        account.added += len(found.added)
        if is_lost:
            why = found.lost or f"rank {next(r for r, o in enumerate(others) if o >= _LOST)} lost it"
            lane.lose(why)
        if any(outcome % _LOST for outcome in others):
            chunks = self._missing(found)
            self._by_hosts(chunks, found)
            if is_lost:
                account.taken_over += len(chunks)
            else:
                account.refused += len(chunks)

    def _missing(self, found: Streamed) -> list[int]:
        """Returns the chunks that some rank lacks."""
        lane = self._lane
        own = torch.ones(self.count, dtype=torch.uint8)
        own[sorted(found.added)] = 0
        told = [torch.zeros_like(own) for _ in range(lane.size)]
        swap_all(lane, [own] * lane.size, told, self._tag + 1)
        for other in told:
            own |= other
        return list(map(int, own.nonzero().flatten()))

    def _by_hosts(self, chunks: list[int], found: Streamed) -> None:
        """Adds chunks over the lane: all agree on their steps, and on the sums of their integers."""
        lane = self._lane
        own = torch.tensor(
            [found.agreed.get(i, 0) if i in self._encoded else self.largest(i) for i in chunks]
        )
        told = [torch.zeros_like(own) for _ in range(lane.size)]
        swap_all(lane, [own] * lane.size, told, self._tag + 2)
        for other in told:
            own = torch.maximum(own, other)
        largests = dict(zip(chunks, map(int, own), strict=True))
        for chunk in chunks:
            if chunk not in self._encoded:
                self.integers(chunk, largests[chunk])
        sums = torch.cat([self._codes[chunk] for chunk in chunks]).to(torch.int32)
        lane.all_reduce(sums).wait()
        sizes = [self._codes[chunk].numel() for chunk in chunks]
        for chunk, part in zip(chunks, sums.split(sizes), strict=True):
            self._decode(chunk, largests[chunk], part.to(_SUMS[self.itemsize]))

    def _sent_of(self, found: Streamed) -> int:
        return sum(self._codes[chunk].nbytes for chunk in self._encoded) + 4 * len(found.agreed)
