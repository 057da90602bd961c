"""A codec that sends the largest magnitudes, as signs of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression import _normal
from tightwire.compression._messages import unreadable
from tightwire.compression.checks import check_ratio
from tightwire.compression.codec import Combine
from tightwire.compression.topk import TopK
from tightwire.compression.widened import WidenedCodec

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class STC(WidenedCodec):
    """Sends μ · sign(xᵢ) for the k largest magnitudes, μ being their mean (algorithm 1); 4 + 4k bytes.

    A position and its sign are one int32, instead of the paper's Golomb code, so that the size is known before
    encoding. Meant for `+ef`. The paper compresses what comes back in the same way (Algorithm 2): that is the recipe
    `sparse-ternary`; gathered, as here, the mean of all messages arrives whole.

    Attributes:
        ratio: of the elements that are sent, in (0, 1].
    """

    name: ClassVar[str] = "stc"
    title: ClassVar[str] = "largest magnitudes, as signs of one size"
    paper: ClassVar[str] = "Sattler et al. 2019, arXiv:1903.02891"
    promise: ClassVar[str] = (
        "As good as top-k at a fraction of its bytes, on unlike data (Sattler et al. 2019)."
    )
    seen: ClassVar[str] = "On like data it needs a few more steps than top-k here."
    example: ClassVar[str] = "stc:0.01"
    combine: ClassVar[Combine] = "none"
    selects: ClassVar[bool] = True
    orthogonal: ClassVar[bool] = True

    ratio: float

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 4 + 4k, or nothing for nothing."""
        return 4 + 4 * TopK(self.ratio).kept(numel) if numel else 0

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        import torch

        k, loops = TopK(self.ratio).kept(x.numel()), kernels.of(x)
        found = kernels.scratch_tensor("found", 8 * k, torch.uint8, x.device)
        loops.select_largest(x, found, k)
        mean = loops.mean_magnitude(found[4 * k :])
        message[:4] = torch.tensor([mean], dtype=torch.float32).view(torch.uint8)
        loops.encode_sparse_signs(x, found, k, mean, message[4:])

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        import torch

        mean, k = float(message[:4].clone().view(torch.float32)), TopK(self.ratio).kept(out.numel())
        if not kernels.of(out).decode_sparse_signs(message[4:], k, mean, out, add):
            raise unreadable(self, out)

    def contraction(self, numel: int) -> float | None:
        """Returns 1/n: the k largest have ‖·‖₁² ≥ ‖·‖₂² ≥ k/n · ‖x‖₂², of which a k-th is kept."""
        return 1 / max(numel, 1)

    def normal_error(self, numel: int) -> float:
        """Returns that of both sides at their mean; see `Codec.normal_error`."""
        return _normal.selecting_signs(self.ratio, one_sided=False)
