"""Averaging by levels: values as they are inside nodes, messages of a codec across them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from tightwire.architecture import AllReduce, Mover, Runner, build
from tightwire.architecture.allreduce.losses import share_of_loss
from tightwire.averaging.averager import Averager, StatelessAverager
from tightwire.buckets import BucketLayout
from tightwire.compression import Codec
from tightwire.errors import PlanError
from tightwire.transport import Transport
from tightwire.transport.subset import Subset


@final
class HierarchicalAverager(StatelessAverager):
    """Adds up inside the node, averages every shard across nodes through a codec, and hands it round inside.

    Each rank of a node owns a shard of the bucket, and is the only one of the node to compress it. What its messages
    fail to carry is the node's: it is charged to the owner as many times as the node has ranks, so that law 1 holds.
    """

    def __init__(
        self,
        nodes: Sequence[Sequence[int]],
        codec: Codec,
        transport: Transport,
        bucket: BucketLayout,
        tag: int,
    ) -> None:
        """Allocates all that runs will need.

        Args:
            nodes: the ranks of each, equally many.
            codec: what travels across.
            transport: between all ranks.
            bucket: of which size and dtype.
            tag: the first of three.

        Raises:
            PlanError: nodes of different sizes.
        """
        if len({len(node) for node in nodes}) > 1:
            raise PlanError(
                f"nodes of {', '.join(str(len(node)) for node in nodes)} workers cannot share a compressed bucket; "
                "hierarchical compresses across nodes of equal size only."
            )
        node = next(node for node in nodes if transport.rank in node)
        inside = Subset(transport, node)
        across = Subset(transport, [other[inside.rank] for other in nodes])
        numel, dtype = bucket.numel, bucket.dtype
        self._size, self._rank = inside.size, inside.rank
        self._scatter = Mover(
            build("reduce-scatter", inside.size),
            inside,
            numel=numel,
            dtype=dtype,
            tag=tag,
            device=bucket.device,
        )
        self._gather = Mover(
            build("all-gather", inside.size),
            inside,
            numel=numel,
            dtype=dtype,
            tag=tag + 1,
            device=bucket.device,
        )
        shard = self._scatter.program.chunk_sizes(numel)[self._rank]
        name = AllReduce().program_name(codec, across.size, shard, dtype.itemsize)
        self._across: Averager = Runner(
            build(name, across.size),
            across,
            numel=shard,
            dtype=dtype,
            codec=codec,
            tag=tag + 2,
            device=bucket.device,
        )
        self._own = torch.empty(shard, dtype=dtype, device=bucket.device)
        self.delivery, self.error = codec.delivery, self._across.error
        self.bytes_sent = self._scatter.bytes_sent + self._across.bytes_sent + self._gather.bytes_sent

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`."""
        self._scatter.run(bucket)
        shard = self._scatter.chunk(bucket, self._rank)
        self._own.copy_(shard).div_(self._size)
        bucket.zero_()
        self._across.run(self._own, self._gather.chunk(mean, self._rank), seed=seed)
        shard.add_(self._own, alpha=share_of_loss(makers=1, divided_by=self._size))
        self._gather.run(mean)
