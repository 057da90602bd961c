"""Ok-Topk over a transport."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tightwire.answers import Delivery
from tightwire.architecture.allreduce.exact import exact_runner
from tightwire.architecture.allreduce.losses import share_of_loss
from tightwire.architecture.allreduce.part import TAG_BITS
from tightwire.averaging._messages import add_message, swap_all, take_largest
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout
from tightwire.transport import Transport


@final
class OkTopKAverager(StatelessAverager):
    """Averages one bucket by Ok-Topk; see the method `oktopk`."""

    delivery: Delivery = "selected"

    def __init__(
        self,
        transport: Transport,
        bucket: BucketLayout,
        *,
        kept: int,
        count: int,
        num_bytes: int,
        tag: int,
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size and dtype.
            kept: elements that regions are cut by.
            count: elements of one message.
            num_bytes: what this rank sends in one run.
            tag: the first of two.
        """
        self._transport, self._tag, self._count = transport, (tag + 1) << TAG_BITS, count
        self._kept, size = kept, count * (4 + bucket.dtype.itemsize)
        self._selected = torch.empty(
            kept * (4 + bucket.dtype.itemsize), dtype=torch.uint8, device=bucket.device
        )
        self._boundaries = exact_runner(transport, transport.size - 1, torch.float64, tag, bucket.device)
        self._outgoing, self._landing = (
            list(torch.empty(transport.size, size, dtype=torch.uint8, device=bucket.device).unbind())
            for _ in range(2)
        )
        self.bytes_sent = num_bytes

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`. Nothing is random."""
        if self._transport.size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        sizes = self._regions(bucket)
        parts, sums = bucket.split_with_sizes(sizes), mean.zero_().split_with_sizes(sizes)
        rank = self._transport.rank
        for part, message in zip(parts, self._outgoing, strict=True):
            take_largest(part, self._count, message)
        swap_all(self._transport, self._outgoing, self._landing, self._tag)
        self._landing[rank].copy_(self._outgoing[rank])
        for message in self._landing:
            add_message(message, self._count, sums[rank])
        message = self._outgoing[rank]
        take_largest(sums[rank], self._count, message)
        parts[rank].add_(sums[rank], alpha=share_of_loss(makers=1))
        swap_all(self._transport, [message] * len(parts), self._landing, self._tag)
        self._landing[rank].copy_(message)
        sums[rank].zero_()
        for message, region in zip(self._landing, sums, strict=True):
            add_message(message, self._count, region)
        mean.div_(self._transport.size)

    def _regions(self, bucket: Tensor) -> list[int]:
        """Returns the sizes of regions that hold, on average over the workers, equally many large elements."""
        size, numel = self._transport.size, bucket.numel()
        take_largest(bucket, self._kept, self._selected)
        places = self._selected[: 4 * self._kept].view(torch.int32)
        add_message(self._selected, self._kept, bucket)
        cuts = places[[self._kept * j // size for j in range(1, size)]].double()
        self._boundaries.run(cuts, cuts)
        bounds = [0]
        for j, cut in enumerate(cuts.tolist(), start=1):
            # Every region has room for a whole message.
            least, most = bounds[-1] + self._count, numel - (size - j) * self._count
            bounds.append(min(max(round(cut), least), most))
        return [end - start for start, end in zip(bounds, [*bounds[1:], numel], strict=True)]
