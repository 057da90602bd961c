"""Parts of a bucket as byte planes, each squeezed by zstd where that pays."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tightwire import kernels
from tightwire.averaging._zstandard import Zstandard
from tightwire.errors import TensorError

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# A plane is tried on so many bytes from its middle, and travels raw unless they shrink by a twentieth.
SAMPLE_BYTES = 8192
WORTH = 0.95


class SqueezedPart:
    """One part of the bucket as it travels: the length of each plane, and the planes, squeezed or raw.

    Attributes:
        header: (itemsize,) int64, the bytes of each plane; as many as the part has elements where it is raw.
        most_bytes: what the planes take where nothing shrinks.
    """

    def __init__(self, numel: int, dtype: torch.dtype, squeezer: Zstandard, *, delta: bool) -> None:
        self._numel, self._squeezer = numel, squeezer
        self._integers = _INTEGERS[dtype.itemsize]
        self.header = torch.zeros(dtype.itemsize, dtype=torch.int64)
        self.most_bytes = numel * dtype.itemsize
        self._planes, self._room = (torch.empty(self.most_bytes, dtype=torch.uint8) for _ in range(2))
        # What the last round that counted held, and what this one does.
        self._base, self._now = (torch.zeros(numel if delta else 0, dtype=self._integers) for _ in range(2))

    @property
    def payload(self) -> Tensor:
        """The planes, of exactly the bytes that the header says; where they are, or where they are to be."""
        return self._room[: int(self.header.sum())]

    def pack(self, part: Tensor) -> None:
        """Squeezes a part."""
        bits = part.view(self._integers)
        if self._base.numel():
            self._now.copy_(bits)
            bits = bits ^ self._base
        kernels.of(part).split_planes(bits, self._planes)
        room, end = self._room.numpy(), 0
        for place, plane in enumerate(self._planes.view(self.header.numel(), self._numel)):
            squeezed = self._squeeze(plane.numpy())
            room[end : end + squeezed.size] = squeezed
            self.header[place] = squeezed.size
            end += squeezed.size

    def unpack(self, part: Tensor) -> None:
        """Writes the part that was packed.

        Raises:
            TensorError: bytes that are no squeezed plane.
        """
        room, end = self._room.numpy(), 0
        for place, plane in enumerate(self._planes.view(self.header.numel(), self._numel)):
            length = int(self.header[place])
            squeezed = room[end : end + length]
            if length < self._numel:
                squeezed = np.frombuffer(self._squeezer.restore(squeezed, self._numel), np.uint8)
            plane.numpy()[:] = squeezed
            end += length
        bits = part.view(self._integers)
        kernels.of(part).join_planes(self._planes, bits)
        if self._base.numel():
            bits.bitwise_xor_(self._base)
            self._now.copy_(bits)

    def check(self, rank: int) -> None:
        """Checks a header that came from `rank`.

        Raises:
            TensorError: lengths that no plane can have.
        """
        if not all(0 <= length <= self._numel for length in self.header.tolist()):
            raise TensorError(
                f"rank {rank} announced planes of {self.header.tolist()} bytes for {self._numel} elements: truncated, "
                "or written by another plan or version; nothing was applied."
            )

    def keep(self) -> None:
        """Lets the next round differ from this one."""
        self._base, self._now = self._now, self._base

    def _squeeze(self, plane: np.ndarray) -> np.ndarray:
        middle = max(0, (plane.size - SAMPLE_BYTES) // 2)
        sample = plane[middle : middle + SAMPLE_BYTES]
        if len(self._squeezer.compress(sample)) > WORTH * sample.size:
            return plane
        squeezed = np.frombuffer(self._squeezer.compress(plane), np.uint8)
        return squeezed if squeezed.size < plane.size else plane
