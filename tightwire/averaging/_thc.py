"""THC over a transport: norms to all, codes to owners, sums of integers back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire import kernels
from tightwire.answers import Delivery
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.averaging._messages import swap_all
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout
from tightwire.compression._rotated import (
    filled,
    pack_planes,
    row_sums,
    rows_of,
    unpack_planes,
)
from tightwire.compression.widened import widened
from tightwire.kernels import reference
from tightwire.kernels.reference._random import random_unit

if TYPE_CHECKING:
    from tightwire.transport import Transport

# Blocks whose norm is outside wait as a whole, on all workers alike.
LEAST_SENT, MOST_SENT = 2.0**-100, 2.0**110


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How elements become integers that are added up.

    Attributes:
        table: the integer of each code, ascending from 0.
        bits: of a code.
        sum_bits: of a sum.
        reach: how far from zero elements are cut, in root mean squares.
        block: elements that are rotated together.
        error: the relative squared error of a mean.
    """

    table: Sequence[int]
    bits: int
    sum_bits: int
    reach: float
    block: int
    error: float


@final
class THCAverager(StatelessAverager):
    """Averages one bucket by THC; see the method `thc`."""

    delivery: Delivery = "rounded"

    def __init__(
        self,
        transport: Transport,
        bucket: BucketLayout,
        coding: Coding,
        sizes: Sequence[int],
        *,
        num_bytes: int,
        tag: int,
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size.
            coding: says how.
            sizes: elements of each rank's part of the filled blocks.
            num_bytes: what this rank sends in one run.
            tag: the first of two.
        """
        self._transport, self._coding = transport, coding
        self._tags = tag << TAG_BITS, (tag + 1) << TAG_BITS
        self._numel, self._sizes = bucket.numel, list(sizes)
        self._dtype = torch.promote_types(bucket.dtype, torch.float32)  # in which sums are rotated back
        self._table, self._top = (
            torch.tensor(coding.table, dtype=torch.int32, device=bucket.device),
            coding.table[-1],
        )
        # Of each unit of the table, the code of the last level that is not above it.
        units = torch.arange(self._top, device=bucket.device)
        self._below = (torch.searchsorted(self._table, units, right=True) - 1).clamp(
            max=len(coding.table) - 2
        )
        self.bytes_sent = num_bytes
        self.error = coding.error

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`."""
        transport, coding = self._transport, self._coding
        if transport.size == 1 or self._numel == 0:
            mean.copy_(bucket)
            bucket.zero_()
            return
        wide = bucket if bucket.dtype == torch.float32 else widened(bucket)
        z = filled(wide, coding.block).clone()
        reaches = self._agree_on_reaches(z)
        kernels.of(z).rotate(z, coding.block, message_seed(seed, 0, 0), False)
        codes = self._round(z, reaches, message_seed(seed, transport.rank + 1, 0))
        sums = self._add_up(codes)
        own = self._restored(self._table[codes.long()].to(self._dtype), reaches, seed)
        mean.copy_(self._restored(sums.to(self._dtype) / transport.size, reaches, seed))
        bucket.sub_(own)

    def _agree_on_reaches(self, z: Tensor) -> Tensor:
        """Turns blocks to be sent into units of their reach, others into zeros; returns reaches, one per block.

        A reach is 0 where all wait, and NaN where a worker's block is not finite.
        """
        largest = torch.cat([rows.abs().amax(1) for _, rows in rows_of(z, self._coding.block)])
        inverse = torch.where(largest > 0, 1 / largest, 0.0).nan_to_num_(0.0, 0.0, 0.0)
        norms = []
        for first, rows in rows_of(z, self._coding.block):
            here = slice(first, first + rows.shape[0])
            squares = row_sums((rows * inverse[here, None]).square()).squeeze(1)
            norms.append((squares.double() / rows.shape[1]).sqrt() * largest[here].double())
        most = torch.finfo(torch.float32).max
        mine = torch.where(largest.isfinite(), torch.cat(norms).clamp(max=most).float(), torch.nan)
        found = [torch.empty_like(mine) for _ in range(self._transport.size)]
        swap_all(self._transport, [mine] * self._transport.size, found, self._tags[0])
        found[self._transport.rank] = mine
        top = torch.stack(found).amax(0)  # a NaN anywhere makes it NaN
        waits = (top < LEAST_SENT) | (top > MOST_SENT)
        reaches = torch.where(waits, 0.0, top * self._coding.reach)
        units = torch.where(reaches > 0, 1 / reaches, 0.0)
        for first, rows in rows_of(z, self._coding.block):
            rows.mul_(units[first : first + rows.shape[0], None]).nan_to_num_(0.0, 0.0, 0.0)
        return reaches

    def _round(self, z: Tensor, reaches: Tensor, seed: int) -> Tensor:
        """Returns the code of each element of rotated blocks in units of their reach: (n,) int32."""
        top = self._top
        place = ((z + 1) * (top / 2)).clamp_(0, top)
        code = self._below[place.long().clamp_(max=top - 1)]
        low, high = self._table[code], self._table[code + 1]
        odds = (place - low) / (high - low)
        return (code + (random_unit(0, z.numel(), seed, z.device) < odds)).int()

    def _add_up(self, codes: Tensor) -> Tensor:
        """Returns the sums over workers of the table's integers: (n,) int32."""
        transport, bits = self._transport, self._coding.bits
        rank, size = transport.rank, transport.size
        outgoing = [pack_planes(part, bits) for part in codes.split(self._sizes)]
        found = [torch.empty_like(outgoing[rank]) for _ in range(size)]
        swap_all(transport, outgoing, found, self._tags[1])
        found[rank] = outgoing[rank]
        total = torch.zeros(self._sizes[rank], dtype=torch.int32, device=codes.device)
        for message in found:
            total += self._table[unpack_planes(message, bits).long()]
        width = self._coding.sum_bits
        mine = pack_planes(total, width)
        sums = [
            torch.empty(width * part // 8, dtype=torch.uint8, device=codes.device) for part in self._sizes
        ]
        swap_all(transport, [mine] * size, sums, self._tags[1])
        sums[rank] = mine
        return torch.cat([unpack_planes(message, width) for message in sums])

    def _restored(self, integers: Tensor, reaches: Tensor, seed: int) -> Tensor:
        """Returns what integers of the table stand for, rotated back: (numel,)."""
        values = integers.mul_(2 / self._top).sub_(1)
        rotate = reference.rotate if self._dtype == torch.float64 else kernels.of(values).rotate
        rotate(values, self._coding.block, message_seed(seed, 0, 0), True)
        for first, rows in rows_of(values, self._coding.block):
            rows.mul_(reaches[first : first + rows.shape[0], None])
        return values[: self._numel]
