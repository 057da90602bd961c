"""One encoding and decoding, on inputs that codecs get wrong, and whether it lost anything."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from tightwire.compression.codec import Codec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Trip(NamedTuple):
    """What one encoding made.

    Attributes:
        message: its bytes.
        decoded: what they say.
        leftover: what stayed in the input; zeros for a lossless codec.
    """

    message: Tensor
    decoded: Tensor
    leftover: Tensor


def normal(numel: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Returns (numel,) normal elements on the host."""
    import torch

    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)).to(dtype)


def round_trip(codec: Codec, x: Tensor, seed: int = 0) -> Trip:
    """Encodes and decodes a copy of `x`, in memory that holds something else before."""
    import torch

    num_bytes = codec.wire_bytes(x.numel(), x.element_size())
    message = torch.full((num_bytes,), 0xA5, dtype=torch.uint8, device=x.device)
    leftover, decoded = x.clone(), torch.full_like(x, 7)
    codec.encode(leftover, message, seed=seed)
    codec.decode(message, decoded)
    return Trip(message, decoded, torch.zeros_like(x) if codec.lossless else leftover)


def difficult(dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns finite inputs that codecs get wrong, (1000,) each, by name."""
    import torch

    limits, x = torch.finfo(dtype), normal(1000, torch.float64)
    return {
        "zeros": torch.zeros(1000, dtype=dtype),
        "negative zeros": torch.full((1000,), -0.0, dtype=dtype),
        "equal elements": torch.full((1000,), 0.3, dtype=dtype),
        "one large element": torch.where(torch.arange(1000) == 500, 1e4, x * 1e-3).to(dtype),
        "denormal elements": (x * limits.smallest_normal / 64).to(dtype),
        "small elements": (x * limits.smallest_normal * 64).to(dtype),
        "huge elements": (x * (limits.max / 3)).clamp(limits.min, limits.max).to(dtype),
        "the largest elements": torch.full((1000,), limits.max, dtype=dtype) * x.sign().to(dtype),
    }


def rest(x: Tensor, decoded: Tensor, leftover: Tensor) -> Tensor:
    """Returns what of x is neither decoded nor left over, in float64.

    The sum of the two, which rounds, may pass the largest float64 where x is next to it; what x lacks of it does not.
    """
    return x.double() - decoded.double() - leftover.double()


def unexplained(x: Tensor, decoded: Tensor, leftover: Tensor) -> float:
    """Returns how far x is from decoded + leftover, at most 1 where a rounding of the larger of the two explains it."""
    import torch

    if x.numel() == 0:
        return 0.0
    if not (bool(decoded.isfinite().all()) and bool(leftover.isfinite().all())):
        return math.inf
    error = rest(x, decoded, leftover).abs()
    size = torch.maximum(decoded.double().abs(), leftover.double().abs())
    limits = torch.finfo(x.dtype)
    return float((error / (limits.eps * size + limits.smallest_normal * limits.eps)).max())
