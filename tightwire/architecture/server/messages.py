"""What workers and servers say to each other: headers of fixed size, then payloads of a size both know."""

from __future__ import annotations

import enum
import json
import math
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from tightwire.buckets import dtype_named
from tightwire.errors import TightwireError, TransportError
from tightwire.transport import Transport
from tightwire.transport.base import Work
from tightwire.transport.pinned import Pinned

MAGIC: Final = b"TWps"
FORMAT: Final = struct.Struct("<4sHHqqIIqq")
HEADER_BYTES: Final = 48
assert FORMAT.size == HEADER_BYTES

# A request's header and payload, a reply's header and payload, and the text of an error.
REQUEST, REQUEST_PAYLOAD, REPLY, REPLY_PAYLOAD, ERROR_TEXT = range(5)


class Kind(enum.IntEnum):
    """What a message is."""

    PUSH = 1  # a worker's gradient; asks for the parameters it may go on with
    LEAVE = 2  # a worker stops for now; asks for the parameters all end with, once all have stopped
    BYE = 3  # a worker sends nothing more
    FETCH = 4  # asks for a checkpoint of the shard, or for one without values
    STORE = 5  # brings one
    VALUES = 16  # the answer to PUSH and LEAVE
    WAIT = 17  # the answer will come: others are not as far yet
    STATE = 18  # the answer to FETCH and STORE
    ERROR = 19  # there will be none, and why


class Flag(enum.IntFlag):
    """What is to be known besides."""

    EMPTY = 1  # a push without a gradient: it was not finite; a checkpoint without values
    LATE = 2  # the gradient came after its round, and was dropped
    DROPPED = 4  # the update was not finite, and was not made


MOST_STATE_TIMES: Final = 64
MOST_STATE_EXTRA: Final = 2**26

NO_FLAG: Final = Flag(0)
ALL_FLAGS: Final = Flag.EMPTY | Flag.LATE | Flag.DROPPED


@dataclass(frozen=True, kw_only=True)
class Header:
    """The fixed part of a message: 48 bytes, little-endian.

    Attributes:
        kind: what it is.
        flags: of `Flag`.
        clock: the worker's, the present push included.
        slowest: the clock of the slowest worker (replies).
        staleness: updates by others between the gradient's read and its own update (replies).
        round: in which a worker reads (replies); the least of all shards' in which it read last (pushes).
        updates: made by the server so far (replies).
        size: bytes of a payload whose size follows from nothing else; in an error also whom it blames, shifted.
    """

    kind: Kind
    flags: Flag = NO_FLAG
    clock: int = 0
    slowest: int = 0
    staleness: int = 0
    round: int = 0
    updates: int = 0
    size: int = 0

    def to_tensor(self) -> Tensor:
        """Returns (HEADER_BYTES,) uint8."""
        packed = FORMAT.pack(
            MAGIC,
            self.kind,
            self.flags,
            self.clock,
            self.slowest,
            self.staleness,
            self.round,
            self.updates,
            self.size,
        )
        return torch.frombuffer(bytearray(packed), dtype=torch.uint8)

    @classmethod
    def of(cls, tensor: Tensor) -> Header:
        """Reads a header.

        Raises:
            TransportError: it is none.
        """
        magic, kind, flags, clock, slowest, staleness, number, updates, size = FORMAT.unpack(
            tensor.numpy().tobytes()
        )
        counts = (clock, slowest, staleness, updates, size)
        if magic != MAGIC or kind not in set(Kind) or flags > ALL_FLAGS or min(counts) < 0:
            raise TransportError(
                f"asked for a message between worker and server, seen one that begins with {magic!r}, kind {kind}: "
                "every rank must run the same version of tightwire."
            )
        return cls(
            kind=Kind(kind),
            flags=Flag(flags),
            clock=clock,
            slowest=slowest,
            staleness=staleness,
            round=number,
            updates=updates,
            size=size,
        )


def check_state_size(num_bytes: int, values_bytes: int) -> int:
    """Returns the size of a shard's state, before memory is taken for it.

    Args:
        num_bytes: as a header says.
        values_bytes: of the shard's parameters, of which an optimizer remembers a few times as much.

    Raises:
        TransportError: no optimizer remembers so much.
    """
    most = MOST_STATE_TIMES * values_bytes + MOST_STATE_EXTRA
    if num_bytes > most:
        raise TransportError(
            f"asked to take a shard's state of {num_bytes} bytes, for parameters of {values_bytes}: at most {most} are "
            "taken. Every rank must run the same version of tightwire."
        )
    return num_bytes


class Post:
    """Sends for all threads of a process over one channel, one at a time, and knows what it should have sent.

    What is on a device crosses to the host, whatever else moves the device's messages: NCCL has no tags, and would hang
    where a server answers workers in the order in which they come.

    Attributes:
        channel: between all ranks.
        planned_bytes: of all messages so far, by formula.
    """

    def __init__(self, channel: Transport) -> None:
        self.channel: Transport = Pinned(channel)
        self.planned_bytes = 0
        self._lock = threading.Lock()

    def send(self, tensor: Tensor, dst: int, tag: int, *, planned_bytes: int) -> Work:
        """Starts sending."""
        with self._lock:  # counting is not made for several threads
            self.planned_bytes += planned_bytes
            return self.channel.isend(tensor, dst, tag)

    def head(self, header: Header, dst: int, tag: int) -> Work:
        """Starts sending a header."""
        return self.send(header.to_tensor(), dst, tag, planned_bytes=HEADER_BYTES)


def pack_state(state: Mapping[str, Any]) -> Tensor:
    """Returns nested dictionaries and lists of tensors and plain values as bytes: their outline in JSON, then tensors.

    Raises:
        TypeError: a value is none of them.
    """
    blobs: list[Tensor] = []

    def outline(value: Any) -> Any:
        if isinstance(value, Tensor):
            blobs.append(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8))
            dtype = str(value.dtype).removeprefix("torch.")
            return {"tensor": [dtype, list(value.shape), blobs[-1].numel()]}
        if isinstance(value, Mapping):
            return {"dict": [[key, outline(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [outline(item) for item in value]}
        return {"value": value}

    text = json.dumps(outline(state)).encode()
    head = torch.frombuffer(bytearray(struct.pack("<q", len(text)) + text), dtype=torch.uint8)
    return torch.cat([head, *blobs])


def unpack_state(packed: Tensor) -> dict[str, Any]:
    """Returns what `pack_state` packed.

    Raises:
        TransportError: it packed nothing like it; nothing was built.
    """
    try:
        (length,) = struct.unpack("<q", packed[:8].numpy().tobytes())
        if not 0 <= length <= packed.numel() - 8:
            raise ValueError("its outline is longer than the message")
        reader = _StateReader(packed, 8 + length)
        state = reader.build(json.loads(packed[8 : 8 + length].numpy().tobytes()))
        if not isinstance(state, dict) or reader.at != packed.numel():
            raise ValueError("it is no dictionary, or bytes are left over")
    except (ValueError, TypeError, KeyError, RecursionError, struct.error, TightwireError) as error:
        raise TransportError(
            f"a shard's state of {packed.numel()} bytes cannot be read ({error}): truncated, or written by another "
            "version; nothing was applied."
        ) from None
    return state


class _StateReader:
    """Builds values from their outline; each tensor takes the next bytes."""

    def __init__(self, packed: Tensor, at: int) -> None:
        self._packed, self.at = packed, at

    def build(self, drawn: Any) -> Any:
        ((what, content),) = drawn.items()
        match what:
            case "dict":
                return {str(key): self.build(item) for key, item in content}
            case "list":
                return [self.build(item) for item in content]
            case "value":
                return content
            case "tensor":
                return self._tensor(*content)
        raise ValueError(f"{what!r} is no kind of value")

    def _tensor(self, name: str, shape: list[int], num_bytes: int) -> Tensor:
        dtype = dtype_named(str(name))
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("a shape holds sizes")
        if num_bytes != math.prod(shape) * dtype.itemsize or self.at + num_bytes > self._packed.numel():
            raise ValueError("a tensor has another size than its shape")
        self.at += num_bytes
        return self._packed[self.at - num_bytes : self.at].clone().view(dtype).view(shape)
