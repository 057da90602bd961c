"""What other members sent, read so that nothing malformed does harm: it is refused whole, in words."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from tightwire.errors import MismatchError, TransportError
from tightwire.transport.blame import name_ranks

MOST: Final = 1 << 62  # of anything that is counted
Read = TypeVar("Read")


def readable(texts: Sequence[bytes], read: Callable[[bytes], Read | None]) -> list[Read]:
    """Returns what all members told.

    Raises:
        MismatchError: some told what cannot be read; on every member alike, and nothing of it is taken up.
    """
    found = [read(text) for text in texts]
    if strange := [rank for rank, one in enumerate(found) if one is None]:
        raise MismatchError(
            f"{name_ranks(strange)} told what cannot be read when members changed: damaged, or of another version of "
            "Tightwire. Nothing of it was taken up; give all workers the same version."
        )
    return [one for one in found if one is not None]


def count_of(data: bytes) -> int | None:
    """Reads how many there are of something, such as bytes that follow; None for whatever is no such number."""
    count = int.from_bytes(data, "little")
    return count if len(data) == 8 and count < MOST else None


def room_for(num_bytes: int, sender: int) -> Tensor:
    """Returns memory for what a member is about to send.

    Raises:
        TransportError: there is not so much.
    """
    try:
        return torch.empty(num_bytes, dtype=torch.uint8)
    except RuntimeError:
        raise TransportError(
            f"rank {sender} is about to send a state of {num_bytes} bytes, for which there is no memory here."
        ) from None


def pack(luggage: Mapping[str, Any]) -> Tensor:
    """Returns plain values and tensors as bytes; see `unpack`."""
    file = io.BytesIO()
    torch.save(dict(luggage), file)
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def unpack(data: bytes) -> dict[str, Any]:
    """Returns what was packed: plain values and tensors.

    Raises:
        TransportError: it packed nothing like it; nothing was taken up.
    """
    try:
        received = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(received, dict):
            raise TypeError("it is no dictionary")
    except Exception as error:  # torch.load and pickle promise no kinds
        raise TransportError(
            f"a state of {len(data)} bytes that another member sent cannot be read ({type(error).__name__}: {error}): "
            "damaged, or of another version of torch; nothing of it was taken up."
        ) from None
    return received
