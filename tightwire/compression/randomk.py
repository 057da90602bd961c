"""A codec that sends random elements, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression.checks import check, check_ratio, is_finite
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.topk import TopK
from tightwire.errors import TensorError

if TYPE_CHECKING:
    from torch import Tensor


SEED_BITS = 32


@final
@dataclass(frozen=True)
class RandomK(Codec):
    """Sends k = max(1, ⌈ratio·n⌉) elements at random places that all ranks draw alike; no indices travel.

    The bucket is cut into k stretches of equal length, and of each one element is drawn, so that every element has
    the same odds and nothing is sorted. Values are sent as they are: a contraction, for `+ef`, with δ = 1/⌈n/k⌉.

    Messages of one round have equal places, so that their elementwise sum is the message of the sum: any program
    carries them, the backend's own too. A message begins with the 32 bits of its seed, each as an element that is
    zero or not, which a sum of any number of messages does not change.

    Attributes:
        ratio: of the elements that are sent, in (0, 1].
    """

    name: ClassVar[str] = "randomk"
    title: ClassVar[str] = "random elements, the same on every rank"
    paper: ClassVar[str] = (
        "Konečný et al. 2016, arXiv:1610.05492 (random mask); Stich et al. 2018, arXiv:1809.07599"
    )
    promise: ClassVar[str] = (
        "Converges with feedback as SGD does, after more steps the less is sent (Stich et al. 2018)."
    )
    seen: ClassVar[str] = "The more steps are seen: an element waits for twenty, and there are 800."
    example: ClassVar[str] = "randomk:0.01+ef"
    combine: ClassVar[Combine] = "exact"
    selects: ClassVar[bool] = True
    sums_as: ClassVar[str | None] = ""

    ratio: float

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)

    def kept(self, numel: int) -> int:
        """Returns k."""
        return TopK(self.ratio).kept(numel)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns (32 + k) · itemsize, or nothing for nothing."""
        return (SEED_BITS + self.kept(numel)) * itemsize if numel else 0

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Moves the elements that the lowest 32 bits of `seed` choose to the message; see `Codec.encode`."""
        import torch

        check(self, x, message)
        if x.numel() == 0:
            return
        numel, k = x.numel(), self.kept(x.numel())
        seed &= (1 << SEED_BITS) - 1
        indices = kernels.scratch_tensor("places", k, torch.int64, x.device)
        kernels.of(x).shared_indices(numel, seed, indices)
        elements = kernels.scratch_tensor("randomk", SEED_BITS + k, x.dtype, x.device)
        bits = [float(seed >> bit & 1) for bit in range(SEED_BITS)]
        elements[:SEED_BITS] = torch.tensor(bits, dtype=x.dtype, device=x.device)
        values = torch.index_select(x, 0, indices, out=elements[SEED_BITS:])
        if not is_finite(x):
            values.fill_(torch.nan)
        message.copy_(elements.view(torch.uint8))
        x.index_fill_(0, indices, 0)

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        import torch

        check(self, out, message)
        if out.numel() == 0:
            return
        k = self.kept(out.numel())
        elements = kernels.scratch_tensor("randomk", SEED_BITS + k, out.dtype, out.device)
        elements.view(torch.uint8).copy_(message)
        head = elements[:SEED_BITS].tolist()
        if not all(0 <= bit < float("inf") for bit in head):
            raise TensorError(
                f"{self} cannot decode this message for {out.numel()} elements: it does not begin with a seed; "
                "it was corrupted, or written by another plan; nothing was applied."
            )
        seed = sum(1 << i for i, bit in enumerate(head) if bit)
        indices = kernels.scratch_tensor("places", k, torch.int64, out.device)
        kernels.of(out).shared_indices(out.numel(), seed, indices)
        if add:
            out.index_add_(0, indices, elements[SEED_BITS:])
        else:
            out.zero_().index_copy_(0, indices, elements[SEED_BITS:])

    def contraction(self, numel: int) -> float | None:
        """Returns 1/⌈n/k⌉, the odds of an element of the longest stretch."""
        return 1 / -(-numel // self.kept(numel)) if numel else 1.0

    def normal_error(self, numel: int) -> float:
        """Returns the share that is not sent; see `Codec.normal_error`."""
        return 1 - self.kept(numel) / numel if numel else 0.0
