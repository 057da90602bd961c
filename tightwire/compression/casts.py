"""Codecs that send every element: as it is, or in a half-precision format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression import _normal
from tightwire.compression.checks import check
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.widened import WidenedCodec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@final
@dataclass(frozen=True)
class Identity(Codec):
    """Sends the bucket's own bytes; wire bytes = itemsize · n."""

    name: ClassVar[str] = "none"
    title: ClassVar[str] = "no compression"
    paper: ClassVar[str] = ""
    promise: ClassVar[str] = "The reference: the mean as it is."
    seen: ClassVar[str] = "Every study holds its methods to it."
    combine: ClassVar[Combine] = "exact"
    sums_as: ClassVar[str | None] = ""
    lossless: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns the bucket's own size."""
        return numel * itemsize

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Copies the bytes of `x`, which stays as it is."""
        check(self, x, message)
        message.copy_(_bytes(x))

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        check(self, out, message)
        _decode_bytes(message, out, add)

    def normal_error(self, numel: int) -> float:
        """Returns nothing lost."""
        return 0.0

    def shared_levels(self, num_ranks: int) -> int:
        """Returns a power of two of which so many fit 31 bits; see `Codec.shared_levels`."""
        return 1 << (30 - (num_ranks - 1).bit_length())


@dataclass(frozen=True)
class _HalfCodec(WidenedCodec):
    """Rounds to nearest in a 16-bit format; a finite value beyond its range becomes its largest one.

    A bucket that already has the format travels as it is.
    """

    combine: ClassVar[Combine] = "lossy"

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 2 · n, whatever the bucket holds."""
        return 2 * numel

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Writes the message of `x`; see `Codec.encode`."""
        if x.dtype != self._half():
            super().encode(x, message, seed=seed)
            return
        check(self, x, message)
        message.copy_(_bytes(x))
        x.zero_()

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        if out.dtype != self._half():
            super().decode(message, out, add=add)
            return
        check(self, out, message)
        _decode_bytes(message, out, add)

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        kernels.of(x).encode_half(x, message, self._half())

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        kernels.of(out).decode_half(message, out, self._half(), add)

    def _half(self) -> torch.dtype:
        from tightwire.buckets import dtype_named

        return dtype_named(self.sums_as or "")


@final
@dataclass(frozen=True)
class BFloat16(_HalfCodec):
    """Sends bfloat16: the range of float32 with 8 significant bits (relative error at most 2⁻⁸)."""

    name: ClassVar[str] = "bf16"
    title: ClassVar[str] = "cast to bfloat16"
    paper: ClassVar[str] = "Kalamkar et al. 2019, arXiv:1905.12322"
    promise: ClassVar[str] = "The loss of float32 (Kalamkar et al. 2019)."
    seen: ClassVar[str] = "Seen."
    sums_as: ClassVar[str | None] = "bfloat16"

    def normal_error(self, numel: int) -> float:
        """Returns the rounding of float32; see `Codec.normal_error`."""
        return _normal.rounding_to_float(7)


@final
@dataclass(frozen=True)
class Float16(_HalfCodec):
    """Sends float16: 11 significant bits between 6e-5 and 65504; below that range it loses precision.

    Sums are of values divided by the number of workers, as DDP's fp16 hook has them. A value beyond 65504 is cut to it,
    or becomes Inf where a loss scale is watched, so that its scaler comes down.
    """

    name: ClassVar[str] = "fp16"
    title: ClassVar[str] = "cast to float16"
    paper: ClassVar[str] = "Micikevicius et al. 2018, arXiv:1710.03740"
    promise: ClassVar[str] = "The loss of float32 with the loss scaled (Micikevicius et al. 2018)."
    seen: ClassVar[str] = "Seen."
    sums_as: ClassVar[str | None] = "float16"
    largest: ClassVar[float | None] = 65504.0

    def normal_error(self, numel: int) -> float:
        """Returns the rounding of float32; see `Codec.normal_error`."""
        return _normal.rounding_to_float(10)


def _bytes(x: Tensor) -> Tensor:
    import torch

    return x.view(torch.uint8)


def _decode_bytes(message: Tensor, out: Tensor, add: bool) -> None:
    if not add:
        _bytes(out).copy_(message)
        return
    aligned = (
        message.data_ptr() % out.element_size() == 0 and message.storage_offset() % out.element_size() == 0
    )
    out.add_((message if aligned else message.clone()).view(out.dtype))
