"""How one shard's tensors travel between its server and the workers: one definition for both and for predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tightwire.answers import CompressionAnswer, Sender
from tightwire.buckets import BucketLayout
from tightwire.compression import Codec, Identity
from tightwire.compression.stage import sender_at

ALIGNMENT = 16  # codecs see their messages as arrays of wider types


@dataclass(frozen=True, kw_only=True)
class MessageLayout:
    """What is in a push and in a pull.

    A push holds one byte per tensor (whether it has a gradient), the settings of the optimizer's groups, then one
    message per bucket; a pull one message per bucket. Each part begins at a multiple of 16 bytes.

    Attributes:
        buckets: of the shard.
        compressions: of each bucket: a codec, and the stages around it.
        num_settings: how many numbers the optimizer's groups are set by.
    """

    buckets: tuple[BucketLayout, ...]
    compressions: tuple[tuple[CompressionAnswer, ...], ...]
    num_settings: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The shard's tensors, in the order in which they travel."""
        return tuple(slot.name for bucket in self.buckets for slot in bucket.slots)

    def codecs(self, number: int) -> tuple[Codec, ...]:
        """Returns what encodes each bucket in a worker's step with this number, both ways."""
        return tuple(_codec(sender_at(compression, number)) for compression in self.compressions)

    @property
    def device(self) -> torch.device:
        """Where the shard's buckets and messages are on this rank."""
        return self.buckets[0].device

    def room(self, num_bytes: int) -> Tensor:
        """Returns (num_bytes,) uint8 for a message, zeros: what lies between its parts travels too."""
        return torch.zeros(num_bytes, dtype=torch.uint8, device=self.device)

    @cached_property
    def is_plain(self) -> bool:
        """Whether parameters always travel as they are, and not as the difference to what the worker has."""
        return all(isinstance(compression[0], Identity) for compression in self.compressions)

    def push_bytes(self, number: int) -> int:
        """Returns the size of a push."""
        parts = (len(self.names), 8 * self.num_settings, *self._message_bytes(self.codecs(number)))
        return sum(map(_aligned, parts))

    def pull_bytes(self, number: int, *, exact: bool = False) -> int:
        """Returns the size of a pull; `exact`: parameters as they are, whatever the codec."""
        codecs = (Identity(),) * len(self.buckets) if exact else self.codecs(number)
        return sum(map(_aligned, self._message_bytes(codecs)))

    def open_push(self, payload: Tensor, number: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Returns views of a push: (num tensors,) uint8, (num settings,) float64, and a message per bucket."""
        sizes = (len(self.names), 8 * self.num_settings, *self._message_bytes(self.codecs(number)))
        used, settings, *messages = _cut(payload, sizes)
        return used, settings.view(torch.float64), messages

    def open_pull(self, payload: Tensor, number: int, *, exact: bool = False) -> list[Tensor]:
        """Returns views of a pull: a message per bucket."""
        codecs = (Identity(),) * len(self.buckets) if exact else self.codecs(number)
        return list(_cut(payload, self._message_bytes(codecs)))

    def _message_bytes(self, codecs: tuple[Codec, ...]) -> tuple[int, ...]:
        return tuple(
            codec.wire_bytes(bucket.numel, bucket.dtype.itemsize) if bucket.numel else 0
            for codec, bucket in zip(codecs, self.buckets, strict=True)
        )


def _codec(sender: Sender) -> Codec:
    assert isinstance(sender, Codec), sender
    return sender


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _cut(payload: Tensor, sizes: tuple[int, ...]) -> Iterator[Tensor]:
    at = 0
    for size in sizes:
        yield payload[at : at + size]
        at += _aligned(size)
