"""Parts of a bucket as entropy-coded floats."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire import kernels
from tightwire.errors import TensorError
from tightwire.kernels.formats import ENTROPY_HEADER_BYTES, entropy_bound_bytes


class CodedPart:
    """One part of the bucket as it travels: its length, and its message.

    Attributes:
        header: (1,) int64, the bytes of the message.
        most_bytes: of a message of which nothing shrinks.
    """

    def __init__(self, numel: int, dtype: torch.dtype, device: torch.device) -> None:
        self._numel = numel
        self.header = torch.zeros(1, dtype=torch.int64)
        self.most_bytes = entropy_bound_bytes(numel, dtype.itemsize)
        self._room = torch.empty(self.most_bytes, dtype=torch.uint8, device=device)

    @property
    def payload(self) -> Tensor:
        """The message, of exactly the bytes that the header says; where it is, or where it is to be."""
        return self._room[: int(self.header)]

    def pack(self, part: Tensor) -> None:
        """Writes the message of a part."""
        self.header[0] = kernels.of(part).encode_entropy(part, self._room)

    def unpack(self, part: Tensor) -> None:
        """Writes the part that was packed.

        Raises:
            TensorError: bytes that are no message of so many floats.
        """
        if not kernels.of(part).decode_entropy(self.payload, part):
            raise TensorError(
                f"a message of {int(self.header)} bytes came that does not decode to {self._numel} elements of "
                f"{part.dtype}: it was corrupted, or written by another plan or version."
            )

    def check(self, rank: int) -> None:
        """Checks a header that came from `rank`.

        Raises:
            TensorError: a length that no message can have.
        """
        if not ENTROPY_HEADER_BYTES <= int(self.header) <= self.most_bytes:
            raise TensorError(
                f"rank {rank} announced {int(self.header)} bytes for {self._numel} elements, which take "
                f"{self.most_bytes} at most: truncated, or written by another plan or version; nothing was applied."
            )

    def keep(self) -> None:
        """Does nothing: rounds are coded alone."""
