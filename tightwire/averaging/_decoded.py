"""A codec whose messages would take more bytes gathered than their values do: decoded at once, and added up exactly."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tightwire.architecture import Runner
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout
from tightwire.compression import Codec
from tightwire.transport import Transport


@final
class DecodedAverager(StatelessAverager):
    """Averages what messages say without sending them: the same mean and leftover as by all-gather, in fewer bytes.

    So a plan means the same on any number of workers: nothing is exchanged for the codec that the plan names, and
    stages see the leftovers that they expect.
    """

    def __init__(self, codec: Codec, exact: Runner, transport: Transport, bucket: BucketLayout) -> None:
        """Allocates what runs will need.

        Args:
            codec: what is encoded and decoded here.
            exact: adds up values as they are.
            transport: between the ranks.
            bucket: of which size and dtype.
        """
        self._codec, self._exact, self._rank = codec, exact, transport.rank
        num_bytes = codec.wire_bytes(bucket.numel, bucket.dtype.itemsize)
        self._message = torch.empty(num_bytes, dtype=torch.uint8, device=bucket.device)
        self.delivery = codec.delivery
        self.error = codec.normal_error(bucket.numel)
        self.bytes_sent = exact.bytes_sent

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`."""
        whose = 0 if self._codec.combine == "exact" else self._rank + 1
        self._codec.encode(bucket, self._message, seed=message_seed(seed, whose, 0))
        self._codec.decode(self._message, mean)
        self._exact.run(mean, mean)
