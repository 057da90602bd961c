"""Dion over a transport: momenta and factors of a bucket's matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire.answers import Delivery
from tightwire.architecture.allreduce.exact import exact_runner
from tightwire.averaging._matrices import elements_of, matrix, memory_shape
from tightwire.averaging._powersgd import noise, orthonormalise
from tightwire.buckets import BucketLayout

if TYPE_CHECKING:
    from tightwire.transport import Transport


@dataclass(frozen=True, kw_only=True)
class _Momentum:
    """One matrix, its momentum and its factors.

    Attributes:
        elements: where it lies in the bucket.
        size: rows and columns.
        kept: flat memory of M and then of Q, (columns, rank).
        following: the same of the round after.
        p: (rows, rank), in the memory that travels.
        r: (columns, rank), likewise.
    """

    elements: slice
    size: tuple[int, int]
    kept: Tensor
    following: Tensor
    p: Tensor
    r: Tensor

    def parts(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Returns M and Q in a flat memory."""
        rows, columns = self.size
        return flat[: rows * columns].view(self.size), flat[rows * columns :].view(columns, -1)


@final
class DionAverager:
    """Averages one bucket by Dion; see the method `dion`."""

    lossless = False
    delivery: Delivery = "voted"
    error: float | None = None
    spared_bytes = 0

    def __init__(self, transport: Transport, bucket: BucketLayout, *, rank: int, mu: float, tag: int) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which tensors.
            rank: columns of the factors.
            mu: share of what was applied that stays.
            tag: the first of two.
        """
        self._alone, self._mu = transport.size == 1, mu
        dtype = torch.promote_types(bucket.dtype, torch.float32)
        sizes = {slot.name: matrix(memory_shape(slot), rank) for slot in bucket.slots}
        self._plain = [elements_of(slot) for slot in bucket.slots if not sizes[slot.name]]
        num_plain = sum(s.stop - s.start for s in self._plain)
        factored = [(slot, size) for slot in bucket.slots if (size := sizes[slot.name])]
        self._first = torch.zeros(
            num_plain + rank * sum(rows for _, (rows, _) in factored), dtype=dtype, device=bucket.device
        )
        self._second = torch.zeros(
            rank * sum(columns for _, (_, columns) in factored), dtype=dtype, device=bucket.device
        )
        self._plain_values = self._first[:num_plain]
        self._matrices: dict[str, _Momentum] = {}
        p_from, r_from = num_plain, 0
        for slot, (rows, columns) in factored:
            kept = torch.zeros(rows * columns + columns * rank, dtype=dtype, device=bucket.device)
            m = _Momentum(
                elements=elements_of(slot),
                size=(rows, columns),
                kept=kept,
                following=torch.zeros_like(kept),
                p=self._first[p_from : p_from + rows * rank].view(rows, rank),
                r=self._second[r_from : r_from + columns * rank].view(columns, rank),
            )
            q = m.parts(kept)[1]
            q.copy_(noise(slot.name, q))
            orthonormalise(q[None])
            self._matrices[slot.name] = m
            p_from, r_from = p_from + rows * rank, r_from + columns * rank
        self._runners = [
            exact_runner(transport, flat.numel(), dtype, tag + i, bucket.device)
            for i, flat in enumerate((self._first, self._second))
        ]

    @property
    def bytes_sent(self) -> int:
        """Payload bytes that this rank sends in one run."""
        return sum(runner.bytes_sent for runner in self._runners)

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Writes directions, and the means of what is no matrix, to `mean`; nothing is left in `bucket`."""
        if self._alone:
            mean.copy_(bucket)
            bucket.zero_()
            return
        for m in self._matrices.values():
            momentum, q = m.parts(m.kept)
            b, _ = m.parts(m.following)
            torch.add(momentum, bucket[m.elements].view(m.size), out=b)
            torch.mm(b, q, out=m.p)
        if self._plain:
            parts = [bucket[elements].to(self._first.dtype) for elements in self._plain]
            torch.cat(parts, out=self._plain_values)
        self._runners[0].run(self._first, self._first)
        for m in self._matrices.values():
            orthonormalise(m.p[None])
            torch.mm(m.parts(m.following)[0].t(), m.p, out=m.r)
        self._runners[1].run(self._second, self._second)
        for m in self._matrices.values():
            b, q = m.parts(m.following)
            b.addmm_(m.p, m.r.t(), alpha=self._mu - 1)  # what is not applied, and μ of what is
            lengths = torch.linalg.vector_norm(m.r, dim=0)
            q.copy_(torch.where(lengths == 0, 0.0, m.r / lengths))
            rows, columns = m.size
            mean[m.elements].view(m.size).copy_(math.sqrt(rows / columns) * (m.p @ q.t()))
        sizes = [elements.stop - elements.start for elements in self._plain]
        for elements, values in zip(self._plain, self._plain_values.split_with_sizes(sizes), strict=True):
            mean[elements] = values
        bucket.zero_()

    def keep(self) -> None:
        """Keeps momenta and factors; a column that was lost begins anew. Local."""
        for name, m in self._matrices.items():
            m.kept.copy_(m.following)
            q = m.parts(m.kept)[1]
            if (lost := (q == 0).all(0)).any():
                fresh = torch.linalg.qr(noise(name, q)).Q
                q[:, lost] = fresh[:, lost]

    def memory(self) -> dict[str, Tensor]:
        """Returns M and Q of each matrix in one flat tensor, by tensor name; shares memory."""
        return {name: m.kept for name, m in self._matrices.items()}
