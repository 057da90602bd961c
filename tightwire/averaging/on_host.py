"""Averaging methods that work in host memory alone, for buckets that are elsewhere."""

from __future__ import annotations

import dataclasses
from typing import final

import torch
from torch import Tensor

from tightwire.answers import Delivery
from tightwire.averaging.averager import Averager
from tightwire.averaging.method import AveragingMethod
from tightwire.buckets import BucketLayout
from tightwire.devices import device_named
from tightwire.transport import Transport


@final
class OnHostAverager:
    """Copies a bucket to pinned memory, averages it there, and copies the mean and what was not carried back."""

    def __init__(
        self, method: AveragingMethod, transport: Transport, bucket: BucketLayout, *, tag: int
    ) -> None:
        """Allocates what runs will need; arguments as for `AveragingMethod.build`."""
        self._device, self._at = device_named(bucket.device), bucket.device
        on_host = dataclasses.replace(bucket, device=torch.device("cpu"))
        self._inner: Averager = method.build(transport, on_host, tag=tag)
        self._work, self._mean = (self._device.pinned(bucket.num_bytes).view(bucket.dtype) for _ in range(2))
        self.bytes_sent = self._inner.bytes_sent

    @property
    def lossless(self) -> bool:
        """As the method says."""
        return self._inner.lossless

    @property
    def delivery(self) -> Delivery:
        """As the method says."""
        return self._inner.delivery

    @property
    def error(self) -> float | None:
        """As the method says."""
        return self._inner.error

    @property
    def spared_bytes(self) -> int:
        """As the method says."""
        return self._inner.spared_bytes

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`. The host waits for the copy to it."""
        device = self._device
        device.copy(bucket, self._work)
        device.wait(device.mark(self._at))
        self._inner.run(self._work, self._mean, seed=seed)
        device.copy(self._mean, mean)
        if not self.lossless:
            device.copy(self._work, bucket)
        # Both are written again by the host in the next run, behind its wait: its copy comes after these.

    def keep(self) -> None:
        """As the method does."""
        self._inner.keep()

    def memory(self) -> dict[str, Tensor]:
        """Returns what the method remembers, on the host."""
        return self._inner.memory()
