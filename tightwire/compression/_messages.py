"""What sparse messages share: a count in front, int32 entries, and the error of one that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tightwire import kernels
from tightwire.compression.codec import Codec
from tightwire.errors import TensorError

if TYPE_CHECKING:
    from torch import Tensor


COUNT_BYTES = 4


BLOCK_INDEX_BYTES = 2


def unreadable(codec: Codec, out: Tensor) -> TensorError:
    """Returns the error of a message whose places cannot be."""
    return TensorError(
        f"{codec} cannot decode this message for {out.numel()} elements: its indices do not ascend within them; "
        "it was corrupted, or written by another plan; nothing was applied."
    )


# What stands for the count of a message that carries no numbers.
SPOILED = -1


def spoil(message: Tensor) -> None:
    """Makes a message, which begins with a count, that of a bucket which is not finite."""
    import torch

    message.zero_()
    message[:COUNT_BYTES] = torch.tensor([SPOILED], dtype=torch.int32).view(torch.uint8)


def is_spoiled(message: Tensor) -> bool:
    """Whether a message was made by `spoil`."""
    import torch

    return int(message[:COUNT_BYTES].clone().view(torch.int32)) == SPOILED


ENTRY_BYTES = 4


def write_count(message: Tensor, count: int) -> None:
    """Writes how many of a message's places are used."""
    import torch

    message[:COUNT_BYTES] = torch.tensor([count], dtype=torch.int32).view(torch.uint8)


def place(codec: Codec, message: Tensor, magnitude: float, out: Tensor, add: bool) -> None:
    """Writes or adds ± a magnitude at the places of a message, which begins with their count.

    Raises:
        TensorError: places that cannot be.
    """
    import torch

    count = int(message[:COUNT_BYTES].clone().view(torch.int32))
    if count == SPOILED:
        out.fill_(float("nan"))
    elif not 0 <= COUNT_BYTES * count <= message.numel() - COUNT_BYTES or not kernels.of(
        out
    ).decode_sparse_signs(message[COUNT_BYTES:], count, magnitude, out, add):
        raise unreadable(codec, out)
