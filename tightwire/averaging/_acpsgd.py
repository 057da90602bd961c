"""ACP-SGD over a transport: factors of a bucket's matrices, sent in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire.architecture.allreduce.exact import exact_runner
from tightwire.averaging._matrices import elements_of, matrix, memory_shape
from tightwire.averaging._powersgd import noise, orthonormalise
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout

if TYPE_CHECKING:
    from tightwire.transport import Transport


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """One tensor as a matrix, and the factors of its last rounds.

    Attributes:
        name: of the tensor.
        elements: where it lies in the bucket.
        size: rows and columns.
        state: whose turn it is (0: P is sent, 1: Q), and both factors, transposed, one after the other.
    """

    name: str
    elements: slice
    size: tuple[int, int]
    state: Tensor

    @property
    def turn(self) -> int:
        """Which factor is sent next."""
        return int(self.state[0])

    def factor(self, which: int) -> Tensor:
        """Returns a factor, (rank, rows) or (rank, columns), with orthonormal rows."""
        rank = (self.state.numel() - 1) // sum(self.size)
        p, q = self.state[1:].split_with_sizes([rank * length for length in self.size])
        return (q if which else p).view(rank, self.size[which])

    def of(self, flat: Tensor) -> Tensor:
        """Returns the matrix in a bucket."""
        return flat[self.elements].view(self.size)


@final
class ACPSGDAverager(StatelessAverager):
    """Averages one bucket by ACP-SGD; see the method `acpsgd`. It remembers factors, and whose turn it is."""

    def __init__(self, transport: Transport, bucket: BucketLayout, *, rank: int, tag: int) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which tensors.
            rank: columns of the factors.
            tag: the first of two.
        """
        self._alone = transport.size == 1
        dtype = torch.promote_types(bucket.dtype, torch.float32)
        sizes = [(slot, matrix(memory_shape(slot), rank)) for slot in bucket.slots]
        self._plain = [elements_of(slot) for slot, size in sizes if not size]
        self._matrices = [
            _Matrix(
                name=slot.name,
                elements=elements_of(slot),
                size=size,
                state=torch.zeros(1 + rank * sum(size), dtype=dtype, device=bucket.device),
            )
            for slot, size in sizes
            if size
        ]
        for m in self._matrices:
            _begin(m, 1, noise(m.name, m.factor(1)))
        self._lengths = [
            [*(e.stop - e.start for e in self._plain), *(m.factor(which).numel() for m in self._matrices)]
            for which in (0, 1)
        ]
        self._sent = [
            torch.zeros(sum(lengths), dtype=dtype, device=bucket.device) for lengths in self._lengths
        ]
        self._all_reduces = [
            exact_runner(transport, flat.numel(), dtype, tag + i, bucket.device)
            for i, flat in enumerate(self._sent)
        ]
        self._last = 0  # whose turn it was in the last run
        self.bytes_sent = max(runner.bytes_sent for runner in self._all_reduces)

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`. Nothing is random but the first factor, by name."""
        if self._alone:
            mean.copy_(bucket)
            bucket.zero_()
            return
        which = self._last = self._matrices[0].turn if self._matrices else 0
        flat, runner = self._sent[which], self._all_reduces[which]
        self.spared_bytes = self.bytes_sent - runner.bytes_sent
        parts = flat.split_with_sizes(self._lengths[which])
        for elements, part in zip(self._plain, parts, strict=False):
            part.copy_(bucket[elements])
        for m, part in self._factors(which):
            values = m.of(bucket).to(flat.dtype)
            torch.mm(m.factor(1 - which), values if which else values.t(), out=part)
        runner.run(flat, flat)
        for elements, part in zip(self._plain, parts, strict=False):
            mean[elements] = part.to(mean.dtype)
            bucket[elements] = 0
        for m, part in self._factors(which):
            p, q = (m.factor(0), part) if which else (part, m.factor(1))
            m.of(mean).copy_(p.t() @ q)
            m.of(bucket).sub_(m.of(mean))

    def keep(self) -> None:
        """Makes the factor that was sent the one that the next round projects on, and gives the other its turn."""
        for m, part in self._factors(self._last):
            _begin(m, self._last, part)

    def memory(self) -> dict[str, Tensor]:
        """Returns factors and turn of each matrix, by tensor name; shares memory."""
        return {m.name: m.state for m in self._matrices}

    def _factors(self, which: int) -> list[tuple[_Matrix, Tensor]]:
        """Returns each matrix with its factor in what is sent."""
        parts = self._sent[which].split_with_sizes(self._lengths[which])[len(self._plain) :]
        return [(m, part.view_as(m.factor(which))) for m, part in zip(self._matrices, parts, strict=True)]


def _begin(m: _Matrix, which: int, factor: Tensor) -> None:
    """Takes a factor for the next round to project on, its columns orthonormal and lost ones drawn again."""
    largest = factor.abs().amax(1, keepdim=True)
    fresh = torch.where(largest > 0, factor / largest, noise(m.name, factor))
    orthonormalise(fresh.t()[None])
    m.factor(which).copy_(fresh)
    m.state[0] = 1 - which
