"""A codec that draws elements at random, and of these sends the largest in few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression.blocktopk import BlockTopK
from tightwire.compression.checks import check, check_ratio, is_finite
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.topk import TopK

if TYPE_CHECKING:
    from torch import Tensor

SEED_BYTES = 4


@final
@dataclass(frozen=True)
class Sampled(Codec):
    """Draws a share of the elements from a seed, ranks blocks of the drawn ones, and sends the largest in few bits.

    Three compressors in a row, each of what the one before let through (Cocktail, section 3.2): no index says which
    were drawn, indices of the largest are within a block of the drawn ones, values take 4 bits. The paper has all
    workers draw alike; here the seed, 4 bytes, is each message's own, so that a round covers more elements.

    Attributes:
        ratio: of the elements that are drawn, in (0, 1].
        top: of the drawn elements that are sent, in (0, 1].
        values: `full`, or in few bits; see `blocktopk`.
        block: drawn elements that are ranked together.
    """

    name: ClassVar[str] = "sampled"
    title: ClassVar[str] = "largest of random elements, in few bits"
    paper: ClassVar[str] = "Wang et al. 2023, CocktailSGD, ICML, section 3.2"
    promise: ClassVar[str] = "117 times fewer bytes in fine-tuning at next to no loss (Wang et al. 2023)."
    seen: ClassVar[str] = "From scratch more steps are needed here."
    example: ClassVar[str] = "sampled:0.1+ef"
    combine: ClassVar[Combine] = "none"
    selects: ClassVar[bool] = True

    ratio: float
    top: float = 0.2
    values: str = "int4"
    block: int = 256

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)
        _ = self.inner

    @property
    def inner(self) -> BlockTopK:
        """What sends the drawn elements."""
        return BlockTopK(self.top, block=self.block, values=self.values)

    def drawn(self, numel: int) -> int:
        """Returns how many elements are drawn."""
        return TopK(self.ratio).kept(numel)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 4 bytes for the seed and the message of the drawn elements."""
        return SEED_BYTES + self.inner.wire_bytes(self.drawn(numel), itemsize) if numel else 0

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Moves what is sent of the drawn elements to the message; see `Codec.encode`."""
        import torch

        check(self, x, message)
        if x.numel() == 0:
            return
        seed &= 0xFFFFFFFF
        head = torch.tensor([seed - (1 << 32) * (seed >> 31)], dtype=torch.int32)
        message[:SEED_BYTES] = head.view(torch.uint8)
        places = self._places(x, seed)
        values = x.index_select(0, places)
        if not is_finite(x):
            values.fill_(torch.nan)
        self.inner.encode(values, message[SEED_BYTES:])
        x.index_copy_(0, places, values)

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        import torch

        check(self, out, message)
        if out.numel() == 0:
            return
        seed = int(message[:SEED_BYTES].clone().view(torch.int32)) & 0xFFFFFFFF
        places = self._places(out, seed)
        values = torch.empty(places.numel(), dtype=out.dtype, device=out.device)
        self.inner.decode(message[SEED_BYTES:], values)
        if add:
            out.index_add_(0, places, values)
        else:
            out.zero_().index_copy_(0, places, values)

    def _places(self, x: Tensor, seed: int) -> Tensor:
        import torch

        places = kernels.scratch_tensor("places", self.drawn(x.numel()), torch.int64, x.device)
        kernels.of(x).shared_indices(x.numel(), seed, places)
        return places

    def contraction(self, numel: int) -> float | None:
        """Returns the odds of being drawn, times what the largest of the drawn carry at least."""
        drawn = self.drawn(numel)
        inner = self.inner.contraction(drawn)
        assert inner is not None
        return inner / -(-numel // drawn) if numel else 1.0

    def normal_error(self, numel: int) -> float:
        """Returns the share that is not drawn, and what is lost of the others; see `Codec.normal_error`."""
        if not numel:
            return 0.0
        drawn = self.drawn(numel)
        return 1 - drawn / numel * (1 - self.inner.normal_error(drawn))
