"""ATOMO over a transport: singular vectors drawn at random, gathered from all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire.architecture.allreduce.exact import exact_runner
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.averaging._matrices import elements_of, matrix, memory_shape
from tightwire.averaging._messages import swap_all
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout

if TYPE_CHECKING:
    from tightwire.transport import Transport


@final
class AtomoAverager(StatelessAverager):
    """Averages one bucket by ATOMO; see the method `atomo`."""

    def __init__(
        self, transport: Transport, bucket: BucketLayout, *, rank: int, num_bytes: int, tag: int
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which tensors.
            rank: pairs per matrix.
            num_bytes: what this rank sends in one run.
            tag: the first of two.
        """
        self._rank, self._transport, self._tag = rank, transport, (tag + 1) << TAG_BITS
        dtype = torch.promote_types(bucket.dtype, torch.float32)
        sizes = [matrix(memory_shape(slot), rank) for slot in bucket.slots]
        self._plain = [elements_of(slot) for slot, size in zip(bucket.slots, sizes, strict=True) if not size]
        self._matrices = [(elements_of(s), size) for s, size in zip(bucket.slots, sizes, strict=True) if size]
        self._plain_values = torch.zeros(
            sum(e.stop - e.start for e in self._plain), dtype=dtype, device=bucket.device
        )
        self._all_reduce = exact_runner(transport, self._plain_values.numel(), dtype, tag, bucket.device)
        # Of each matrix rank rows and then rank columns, of every worker.
        self._lengths = [rank * length for _, size in self._matrices for length in size]
        self._messages = torch.zeros(transport.size, sum(self._lengths), dtype=dtype, device=bucket.device)
        self.bytes_sent = num_bytes

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`."""
        rank, size = self._transport.rank, self._transport.size
        if size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        self._draw(bucket, seed)
        swap_all(self._transport, [self._messages[rank]] * size, list(self._messages.unbind()), self._tag)
        self._average_plain(bucket, mean)
        factors = self._messages.split_with_sizes(self._lengths, dim=1)
        for i, (elements, (rows, columns)) in enumerate(self._matrices):
            left, right = factors[2 * i].reshape(-1, rows), factors[2 * i + 1].reshape(-1, columns)
            mean[elements] = (left.t() @ right).div_(size).flatten()

    def _draw(self, bucket: Tensor, seed: int) -> None:
        """Writes this worker's message, and leaves in the bucket what it does not carry."""
        rank = self._transport.rank
        factors = self._messages[rank].split_with_sizes(self._lengths)
        for i, (elements, (rows, columns)) in enumerate(self._matrices):
            matrix = bucket[elements].view(rows, columns)
            generator = torch.Generator().manual_seed(message_seed(seed, rank + 1, i))
            left, right = factors[2 * i].view(-1, rows), factors[2 * i + 1].view(-1, columns)
            draw(matrix.to(left.dtype), left, right, generator)
            matrix.sub_((left.t() @ right).to(matrix.dtype))

    def _average_plain(self, bucket: Tensor, mean: Tensor) -> None:
        sizes = [elements.stop - elements.start for elements in self._plain]
        values = self._plain_values.split_with_sizes(sizes) if sizes else ()
        for elements, value in zip(self._plain, values, strict=True):
            value.copy_(bucket[elements])
            bucket[elements] = 0
        self._all_reduce.run(self._plain_values, self._plain_values)
        for elements, value in zip(self._plain, values, strict=True):
            mean[elements] = value


def draw(matrix: Tensor, left: Tensor, right: Tensor, generator: torch.Generator) -> None:
    """Writes as many singular pairs as `left` has rows, whose sum of products has the matrix as expectation.

    Args:
        matrix: (rows, columns), float32 or float64; one that is not finite gives NaN.
        left: (count, rows), overwritten; scaled by σ/p.
        right: (count, columns), overwritten.
        generator: of the draw.
    """
    left.zero_()
    right.zero_()
    if not matrix.isfinite().all():
        left.fill_(torch.nan)
        return
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    odds = probabilities(sigma.double(), left.shape[0])
    # Systematic sampling: inclusion by the odds, and always the same number of pairs.
    start = torch.rand((), generator=generator, dtype=torch.float64)
    steps = (odds.cumsum(0) + start).floor()
    chosen = steps.diff(prepend=steps.new_zeros(1)).nonzero().flatten()[: left.shape[0]]
    left[: len(chosen)] = (u[:, chosen] * (sigma[chosen] / odds[chosen].to(sigma.dtype))).t()
    right[: len(chosen)] = vh[chosen]


def probabilities(sigma: Tensor, count: int) -> Tensor:
    """Returns p_i = min(1, s·σ_i / ‖σ‖₁) with s such that they sum to `count` (algorithm 1), or 1 for all but zeros.

    Args:
        sigma: (n,) descending, not negative.
        count: how many to draw.
    """
    odds = torch.zeros_like(sigma)
    num_sure, num_positive = 0, int((sigma > 0).sum())
    while num_sure < min(count, num_positive):
        rest = sigma[num_sure:]
        odds[num_sure:] = (count - num_sure) * rest / rest.sum()
        more = int((odds[num_sure:] >= 1).sum())
        if more == 0:
            break
        odds[num_sure : num_sure + more] = 1
        num_sure += more
    if num_sure >= count:
        odds[num_sure:] = 0
    return odds
