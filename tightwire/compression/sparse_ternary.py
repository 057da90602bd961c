"""Sparse ternary compression: the largest elements, each as a sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression.checks import check
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.sparse import TopK
from tightwire.errors import TensorError

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_FLOAT32 = 3.4028234e38


@final
@dataclass(frozen=True)
class STC(Codec):
    """Sends μ · sign(xᵢ) for the k largest magnitudes, μ being their mean (algorithm 1); 4 + 4k bytes.

    A position and its sign are one int32, instead of the paper's Golomb code, so that the size is known before
    encoding. Meant for `+ef`.

    Attributes:
        ratio: of the elements that are sent, in (0, 1].
    """

    name: ClassVar[str] = "stc"
    title: ClassVar[str] = "largest magnitudes, as signs of one size"
    paper: ClassVar[str] = "Sattler et al. 2019, arXiv:1903.02891"
    example: ClassVar[str] = "stc:0.01"
    combine: ClassVar[Combine] = "none"

    ratio: float

    def __post_init__(self) -> None:
        TopK(self.ratio)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 4 + 4k, or nothing for nothing."""
        return 4 + 4 * TopK(self.ratio).kept(numel) if numel else 0

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Writes the message of `x`; see `Codec.encode`."""
        import torch

        check(self, x, message)
        if x.numel() == 0:
            return
        k = TopK(self.ratio).kept(x.numel())
        found = kernels.scratch("found", k * (4 + x.element_size()), torch.uint8, x.device)
        kernels.of(x).select(x, found, k)
        indices, values = found[: 4 * k].view(torch.int32), found[4 * k :].clone().view(x.dtype)
        mean = values.double().abs().clamp(max=_LARGEST_FLOAT32).mean(0, keepdim=True)
        scale = torch.where(values.isfinite().all(), mean, torch.nan).float()
        negative = values.signbit()
        x[indices.long()] = values - _signed(scale, negative).to(x.dtype)
        message[:4] = scale.view(torch.uint8)
        message[4:] = (indices | (negative.to(torch.int32) << 31)).view(torch.uint8)

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        import torch

        check(self, out, message)
        if out.numel() == 0:
            return
        scale, entries = message[:4].clone().view(torch.float32), message[4:].clone().view(torch.int32)
        indices = (entries & 0x7FFFFFFF).long()
        if bool((indices.diff() <= 0).any()) or int(indices[-1]) >= out.numel():
            raise TensorError(
                f"{self} cannot decode this message for {out.numel()} elements: its positions do not ascend within "
                "them; it was corrupted, or written by another plan; nothing was applied."
            )
        values = _signed(scale, entries < 0).to(out.dtype)
        if add:
            out.index_add_(0, indices, values)
        else:
            out.zero_().index_copy_(0, indices, values)

    def contraction(self, numel: int) -> float | None:
        """Returns 1/n: the k largest have ‖·‖₁² ≥ ‖·‖₂² ≥ k/n · ‖x‖₂², of which a k-th is kept."""
        return 1 / max(numel, 1)


def _signed(scale: Tensor, negative: Tensor) -> Tensor:
    import torch

    return torch.where(negative, -scale, scale)
