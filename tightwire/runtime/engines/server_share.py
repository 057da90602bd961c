"""One shard of a parameter server as a worker has it: gradients on their way out, values on their way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tightwire.answers import Member
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.round import Round
from tightwire.architecture.server.client import Client
from tightwire.architecture.server.layout import MessageLayout
from tightwire.architecture.server.messages import Flag, Header
from tightwire.architecture.server.parameter_server import Roles
from tightwire.averaging.bucket import BucketAverager
from tightwire.buckets import Bucket
from tightwire.compression import Codec, Identity
from tightwire.compression.checks import require_decoded
from tightwire.runtime.engines.holdings import Holding


@dataclass
class Room:
    """Where a bucket's message goes: the present push's part."""

    message: Tensor


class PushWriter:
    """Encodes a bucket into its part of the push; an averager of this worker alone, for the stages around it."""

    error: float | None = None

    def __init__(self, codec: Codec, room: Room) -> None:
        self.lossless, self.delivery = codec.lossless, codec.delivery
        self.bytes_sent = self.spared_bytes = 0  # the layout counts
        self._codec, self._room = codec, room

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Writes the message of `bucket`, and leaves in it what that does not carry; `mean` is what it carries."""
        if not bucket.numel():
            return
        if self._codec.selects:
            mean.copy_(bucket)
        self._codec.encode(bucket, self._room.message, seed=seed)
        if self._codec.selects:
            mean.sub_(bucket)

    def keep(self) -> None:
        """Does nothing: a run leaves nothing to remember."""

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing; see `keep`."""
        return {}


class Share:
    """One shard as its worker has it: gradients on their way out, values on their way in.

    Attributes:
        owner: the shard's rank.
        client: asks it.
        averagers: take gradients through the stages of their compression.
        values: the parameters as last received, per bucket.
        updates: that the server had made then; −1 before.
        clock: of the step that they answered.
        read_in: the shard's round in which they were read.
    """

    def __init__(
        self,
        owner: int,
        layout: MessageLayout,
        client: Client,
        parameters: Mapping[str, Tensor],
        roles: Roles,
        seed: int,
        rank: int,
    ) -> None:
        self.owner, self.client = owner, client
        self._message_layout, self._seed, self._rank = layout, seed, rank
        self._rooms = [Room(torch.empty(0, dtype=torch.uint8)) for _ in layout.buckets]
        self.averagers = [
            BucketAverager(Bucket(layout), compression, _writers(room), workers=len(roles.workers))
            for layout, compression, room in zip(
                layout.buckets, layout.compressions, self._rooms, strict=True
            )
        ]
        self.values = [Bucket(layout) for layout in layout.buckets]
        for bucket in self.values:
            bucket.pack({name: parameters[name].detach() for name in bucket.views})
        self._payload = layout.room(layout.push_bytes(1))
        self._has_gradient = False
        self.updates, self.clock, self.read_in = -1, 0, 0

    def heard(self) -> Holding:
        """Returns a copy of what was last received."""
        values = {name: view.clone() for bucket in self.values for name, view in bucket.views.items()}
        return Holding(
            kind="heard", names=tuple(values), updates=self.updates, clock=self.clock, values=values
        )

    def send(
        self,
        clock: int,
        by_name: Mapping[str, Tensor | None],
        settings: Sequence[float] | None,
        *,
        read_in: int,
    ) -> None:
        """Begins a push; without settings, of nothing; `read_in` is the least round of all shares."""
        self._has_gradient = settings is not None
        if settings is None:
            self.client.push(clock, None, read_in=read_in)
            return
        payload = self._room_for(self._message_layout.push_bytes(clock))
        used, numbers, messages = self._message_layout.open_push(payload, clock)
        numbers.copy_(torch.tensor(settings, dtype=torch.float64))
        gradients = [by_name[name] for name in self._message_layout.names]
        used.copy_(torch.tensor([gradient is not None for gradient in gradients], dtype=torch.uint8))
        for number, (averager, message) in enumerate(zip(self.averagers, messages, strict=True)):
            for name, view in averager.bucket.views.items():
                gradient = by_name[name]
                view.zero_() if gradient is None else view.copy_(gradient)
            self._rooms[number].message = message
            seed = message_seed(self._seed + clock, self._rank + 1, number)
            averager.run(Round(number=clock, seed=seed))
        self.client.push(clock, payload, read_in=read_in)

    def receive(self, clock: int) -> Header:
        """Waits for the parameters to go on with, and keeps what stages learnt if the gradient counted."""
        header, payload = self.client.answer()
        if self._has_gradient and not header.flags & (Flag.LATE | Flag.DROPPED):
            for averager in self.averagers:
                averager.keep()
        codecs, messages = self._message_layout.codecs(clock), self._message_layout.open_pull(payload, clock)
        for codec, message, bucket in zip(codecs, messages, self.values, strict=True):
            if bucket.flat.numel():
                codec.decode(message, bucket.flat, add=not self._message_layout.is_plain)
        require_decoded(self._message_layout.device)
        self.updates, self.clock, self.read_in = header.updates, clock, header.round
        return header

    def land(self, clock: int) -> Header:
        """Waits until all workers have stopped, and takes the exact parameters."""
        header, payload = self.client.answer()
        exact = Identity()
        for message, bucket in zip(
            self._message_layout.open_pull(payload, clock, exact=True), self.values, strict=True
        ):
            if bucket.flat.numel():
                exact.decode(message, bucket.flat)
        self.updates, self.clock, self.read_in = header.updates, header.clock, header.round
        return header

    def _room_for(self, num_bytes: int) -> Tensor:
        if self._payload.numel() < num_bytes:
            self._payload = self._message_layout.room(num_bytes)
        return self._payload[:num_bytes]


def _writers(room: Room) -> Any:
    def build(sender: Member) -> PushWriter:
        assert isinstance(sender, Codec), sender
        return PushWriter(sender, room)

    return build
