"""The common shape of codecs whose arithmetic is float32."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tightwire import kernels
from tightwire.compression.checks import check
from tightwire.compression.codec import Codec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WidenedCodec(Codec, abc.ABC):
    """Gives its subclass float32, whatever the bucket holds, and owns the leftover of other dtypes.

    A bucket of another dtype is widened to scratch memory first, and what is decoded is narrowed to it; both
    saturate, so that what is finite stays so. Its leftover is x − decoded in its own dtype.
    """

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Writes the message of `x`; see `Codec.encode`."""
        import torch

        check(self, x, message)
        if x.numel() == 0:
            return
        if x.dtype == torch.float32:
            self._encode(x, message, seed)
            return
        self._encode(widened(x), message, seed)
        x.sub_(self._decoded(message, x))

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the decoded message; see `Codec.decode`."""
        import torch

        check(self, out, message)
        if out.numel() == 0:
            return
        if out.dtype == torch.float32:
            self._decode(message, out, add)
        elif add:
            out.add_(self._decoded(message, out))
        else:
            out.copy_(self._decoded(message, out))

    def _decoded(self, message: Tensor, like: Tensor) -> Tensor:
        """Returns the message decoded to scratch memory, in the dtype of `like` or one that it widens to."""
        import torch

        wide = kernels.scratch_tensor("wide", like.numel(), torch.float32, like.device)
        self._decode(message, wide, False)
        return narrowed(wide, like)

    @abc.abstractmethod
    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        """Writes the message of a checked, not empty, float32 `x` and leaves the leftover in it."""

    @abc.abstractmethod
    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        """Writes or adds a checked message to a float32 `out`, not empty."""


def widened(x: Tensor) -> Tensor:
    """Returns `x` as float32 in scratch memory; what is finite stays so."""
    import torch

    wide = kernels.scratch_tensor("wide", x.numel(), torch.float32, x.device).copy_(x)
    if x.dtype == torch.float64 and not wide.isfinite().all():
        limit = torch.finfo(torch.float32).max
        wide.copy_(torch.where(x.isfinite(), x.clamp(-limit, limit), x))
    return wide


def narrowed(wide: Tensor, like: Tensor) -> Tensor:
    """Returns float32 in scratch memory of the dtype of `like`, saturated; as it is where that is wider."""
    import torch

    if like.dtype in (torch.float32, torch.float64):
        return wide
    narrow = kernels.scratch_tensor("narrow", like.numel(), like.dtype, like.device)
    kernels.of(wide).encode_half(wide, narrow.view(torch.uint8), like.dtype)
    return narrow
