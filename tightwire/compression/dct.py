"""A codec that sends the strongest coefficients of each chunk's discrete cosine transform."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from tightwire import kernels
from tightwire.compression import _normal
from tightwire.compression._messages import BLOCK_INDEX_BYTES, unreadable
from tightwire.compression.checks import check
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.widened import narrowed, widened
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class Cosines(Codec):
    """Sends the strongest coefficients of each chunk's discrete cosine transform; 6 bytes each.

    DeMo's extraction of fast-moving components, section 4.2: chunks of consecutive elements of the flat bucket
    (the authors' code cuts a matrix into squares), an orthonormal DCT-II up to one common factor, and the `kept`
    largest magnitudes: an index of two bytes and a float32. Sums are taken in one order without fused
    multiplications, so that every rank decodes the same bits. A chunk beyond half of what the bucket's dtype can hold
    waits as a whole.

    A transform is a product of every chunk with a fixed matrix, `chunk` multiply-adds per element: that product by
    BLAS is the floor of encoding's time. Decoding takes `kept` multiply-adds per element.

    Attributes:
        kept: coefficients of each chunk, from 1 to `chunk`.
        chunk: elements that are transformed together; 64, 128 or 256.
    """

    name: ClassVar[str] = "dct"
    title: ClassVar[str] = "strongest waves of every chunk"
    paper: ClassVar[str] = "Peng, Quesnelle and Kingma 2024, DeMo, arXiv:2411.19870, section 4.2"
    promise: ClassVar[str] = (
        "Strong waves of chunks keep what changes fast, at a small share of the bytes (Peng et al. 2024)."
    )
    seen: ClassVar[str] = "With feedback more steps are needed here than of top-k."
    example: ClassVar[str] = "dct:2+ef"
    combine: ClassVar[Combine] = "none"

    kept: int = 2
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.chunk not in (64, 128, 256):
            raise PlanError(f"dct cannot transform chunks of {self.chunk}: give 64, 128 or 256.")
        if not 1 <= self.kept <= self.chunk:
            raise PlanError(
                f"dct cannot keep {self.kept} of {self.chunk} coefficients: give 1 to {self.chunk}, as in dct:2."
            )

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 6 bytes for every coefficient; the last chunk is filled up with zeros."""
        return -(-numel // self.chunk) * self.kept * (BLOCK_INDEX_BYTES + 4)

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Writes the strongest waves of `x` to the message; see `Codec.encode`."""
        import torch

        check(self, x, message)
        if x.numel() == 0:
            return
        # An element and its waves may have unlike signs: half of the range each, and their difference fits.
        half = min(torch.finfo(x.dtype).max, torch.finfo(torch.float32).max) / 2
        bounds = (half, half / (2 * self.kept))
        wide = x if x.dtype == torch.float32 else widened(x)
        kernels.of(x).encode_cosines(wide, _waves(self.chunk, x.device), bounds, self.kept, message)
        if wide is not x:
            x.sub_(self._decoded(message, x))

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the waves; see `Codec.decode`."""
        import torch

        check(self, out, message)
        if out.numel() == 0:
            return
        if out.dtype == torch.float32:
            self._put(message, out, int(add))
        elif add:
            out.add_(self._decoded(message, out))
        else:
            out.copy_(self._decoded(message, out))

    def _put(self, message: Tensor, out: Tensor, how: int) -> None:
        waves = _waves(self.chunk, out.device)
        if not kernels.of(out).decode_cosines(message, out, waves, self.kept, how):
            raise unreadable(self, out)

    def _decoded(self, message: Tensor, like: Tensor) -> Tensor:
        import torch

        wide = kernels.scratch_tensor("wide", like.numel(), torch.float32, like.device)
        self._put(message, wide, 0)
        return narrowed(wide, like)

    def contraction(self, numel: int) -> float | None:
        """Returns kept/chunk: the transform keeps lengths, and the strongest have at least their share."""
        return self.kept / self.chunk

    def normal_error(self, numel: int) -> float:
        """Returns that of the largest: waves of normal elements are normal; see `Codec.normal_error`."""
        return _normal.selecting(self.kept / self.chunk)


@kernels.per_thread
def _waves(chunk: int, device: Any) -> Tensor:
    """Returns `_waves_on_host`, on a device."""
    return _waves_on_host(chunk).to(device)


@functools.cache
def _waves_on_host(chunk: int) -> Tensor:
    """Returns the wave of each coefficient, (chunk, chunk) float32.

    Scaled so that no coefficient is larger than the largest element.
    """
    import torch

    waves = torch.tensor(
        [[math.cos(math.pi * (2 * i + 1) * j / (2 * chunk)) for i in range(chunk)] for j in range(chunk)],
        dtype=torch.float64,
    )
    waves[0] *= math.sqrt(0.5)
    return (2 * waves).float()
