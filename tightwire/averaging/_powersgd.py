"""PowerSGD over a transport: the factors of a bucket's matrices, batched by equal shapes."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire.answers import Delivery
from tightwire.architecture.allreduce.exact import exact_runner, rounded_runner
from tightwire.averaging._matrices import elements_of, matrix, memory_shape
from tightwire.averaging.method import Shape
from tightwire.buckets import BucketLayout
from tightwire.compression import Codec

if TYPE_CHECKING:
    from tightwire.transport import Transport

# What a column keeps of its square after projection, at least: keeps dependent columns from dividing by zero.
RIDGE = 1e-14


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """One tensor as a matrix, and the memory of its factors, of Q the transpose: so products are fastest.

    Attributes:
        name: of the tensor.
        elements: where it lies in the bucket.
        size: rows and columns.
        p: (rows, rank).
        q: (rank, columns).
        start: (rank, columns), what the next round's q starts from.
    """

    name: str
    elements: slice
    size: tuple[int, int]
    p: Tensor
    q: Tensor
    start: Tensor

    def of(self, flat: Tensor) -> Tensor:
        """Returns the matrix in a bucket."""
        return flat[self.elements].view(self.size)


@final
class PowerSGDAverager:
    """Averages one bucket by PowerSGD; see the method `powersgd`."""

    lossless = False
    delivery: Delivery = "rounded"
    error: float | None = None
    spared_bytes = 0

    def __init__(
        self, transport: Transport, bucket: BucketLayout, *, rank: int, tag: int, codec: Codec | None = None
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which tensors.
            rank: columns of the factors.
            tag: the first of two.
            codec: rounds factors; None where they travel whole.
        """
        self._is_rounded = codec is not None
        self._alone = transport.size == 1
        dtype = torch.promote_types(bucket.dtype, torch.float32)
        slots = sorted(bucket.slots, key=lambda slot: matrix(memory_shape(slot), rank) or (0, 0))
        sizes = {slot.name: matrix(memory_shape(slot), rank) for slot in slots}
        factored = [(slot, size) for slot in slots if (size := sizes[slot.name])]
        self._plain = [elements_of(slot) for slot in slots if not sizes[slot.name]]
        num_plain = sum(s.stop - s.start for s in self._plain)
        self._ps = torch.zeros(
            num_plain + rank * sum(rows for _, (rows, _) in factored), dtype=dtype, device=bucket.device
        )
        self._qs = torch.zeros(
            rank * sum(columns for _, (_, columns) in factored), dtype=dtype, device=bucket.device
        )
        self._starts = torch.zeros_like(self._qs)
        self._plain_ps = self._ps[:num_plain]
        p = _cut(self._ps[num_plain:], [(rows, rank) for _, (rows, _) in factored])
        q, start = (
            _cut(flat, [(rank, columns) for _, (_, columns) in factored]) for flat in (self._qs, self._starts)
        )
        self._matrices = [
            _Matrix(name=slot.name, elements=elements_of(slot), size=size, p=p[i], q=q[i], start=start[i])
            for i, (slot, size) in enumerate(factored)
        ]
        for m in self._matrices:
            m.start.copy_(noise(m.name, m.start))
        # Equal shapes lie together, so that what is done to small factors is done to all of them at once.
        self._p_batches = _batches(self._ps[num_plain:], [m.p for m in self._matrices])
        self._all_reduces = [
            exact_runner(transport, flat.numel(), dtype, tag + i, bucket.device)
            if codec is None
            else rounded_runner(codec, transport, flat.numel(), dtype, tag + i, bucket.device)
            for i, flat in enumerate((self._ps, self._qs))
        ]

    @property
    def bytes_sent(self) -> int:
        """Payload bytes that this rank sends in one run."""
        return sum(runner.bytes_sent for runner in self._all_reduces)

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`. Nothing is random but the first start, by name."""
        if self._alone:
            mean.copy_(bucket)
            bucket.zero_()
            return
        self.project(bucket)
        self._average(0, self._ps, seed)
        self.project_back(bucket)
        self._average(1, self._qs, seed)
        self._multiply(mean)
        bucket.sub_(mean)
        for elements in self._plain if not self._is_rounded else ():
            bucket[elements] = 0

    def _average(self, number: int, flat: Tensor, seed: int) -> None:
        """Averages factors in place; rounded, what they lose is found in what the mean of the bucket lacks."""
        self._all_reduces[number].run(flat.clone() if self._is_rounded else flat, flat, seed=seed)

    def project(self, bucket: Tensor) -> None:
        """P ← M·Q, and what travels as it is beside it."""
        for m in self._matrices:
            torch.mm(m.of(bucket).to(m.p.dtype), m.start.t(), out=m.p)
        if self._plain:
            torch.cat([bucket[elements].to(self._ps.dtype) for elements in self._plain], out=self._plain_ps)

    def project_back(self, bucket: Tensor) -> None:
        """Q ← Mᵀ·P, with orthonormal P."""
        for batch in self._p_batches:
            orthonormalise(batch)
        for m in self._matrices:
            torch.mm(m.p.t(), m.of(bucket).to(m.q.dtype), out=m.q)

    def keep(self) -> None:
        """Starts the next round from the mean Q, its columns scaled and lost ones drawn again. Local."""
        for m in self._matrices:
            largest = m.q.abs().amax(1, keepdim=True)
            m.start.copy_(m.q / largest)
            lost = (largest == 0).squeeze(1)
            if lost.any():
                m.start[lost] = noise(m.name, m.start)[lost]

    def memory(self) -> dict[str, Tensor]:
        """Returns what the next round starts from, by tensor name, (rank, columns) each; shares memory."""
        return {m.name: m.start for m in self._matrices}

    def _multiply(self, mean: Tensor) -> None:
        for m in self._matrices:
            if mean.dtype == m.p.dtype:
                torch.mm(m.p, m.q, out=m.of(mean))
            else:
                m.of(mean).copy_(m.p @ m.q)
        sizes = [elements.stop - elements.start for elements in self._plain]
        for elements, values in zip(self._plain, self._plain_ps.split_with_sizes(sizes), strict=True):
            mean[elements] = values


def orthonormalise(matrices: Tensor) -> None:
    """Makes the columns of each matrix orthonormal, in place: Gram–Schmidt by the Cholesky factor of MᵀM.

    In double precision, where squares of float32 neither overflow nor vanish. A column that depends on those
    before it, or is zero, becomes zero; what is not finite stays so.

    Args:
        matrices: (batch, rows, columns), float32 or float64.
    """
    wide = matrices.mT.double()
    gram = wide @ wide.mT
    squares = gram.diagonal(dim1=-2, dim2=-1)
    squares.copy_(torch.where(squares == 0, 1, squares * (1 + RIDGE)))
    lower, _ = torch.linalg.cholesky_ex(gram)
    matrices.copy_(torch.linalg.solve_triangular(lower, wide, upper=False).mT)


def _cut(flat: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    parts = flat.split_with_sizes([math.prod(shape) for shape in shapes]) if shapes else ()
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _batches(flat: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Returns neighbours of one shape as batches of (batch, *shape)."""
    shapes = [(len(list(group)), *shape) for shape, group in itertools.groupby(f.shape for f in factors)]
    return _cut(flat, shapes)


def noise(name: str, like: Tensor) -> Tensor:
    """Draws from the tensor's name: the same on every rank and in every bucket."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
