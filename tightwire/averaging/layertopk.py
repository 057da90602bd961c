"""Top-k of each tensor by itself, however tensors share buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.architecture import build, predict_bytes
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.compression import Codec, Combine, TopK
from tightwire.compression.checks import check, check_ratio
from tightwire.errors import PlanError, TensorError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport

COUNT_BYTES = 4


@final
@dataclass(frozen=True)
class LayerTopK(AveragingMethod):
    """Sends the largest elements of each tensor exactly, gathered from all workers.

    With `by=size` every tensor sends max(1, ⌈ratio·n⌉) of its n elements, so that no layer is silenced by
    another one in its bucket, whatever the fusion. With `by=norm` the ratio adapts to each layer and round: the
    same budget, the sum over tensors, is shared in proportion to the sums of their magnitudes, one element each at
    least (a layer-wise allocation of a fixed budget in the spirit of L-GreCo, arXiv:2210.17357, by a rule that costs
    one pass); counts travel in front. Either way a message's size is known before it is made.

    Attributes:
        ratio: of the elements that are sent, in (0, 1].
        by: `size` or `norm`.
    """

    name: ClassVar[str] = "layertopk"
    title: ClassVar[str] = "largest magnitudes of every tensor, by fixed or adaptive ratios"
    paper: ClassVar[str] = (
        "Shi et al. 2020, LAGS-SGD, arXiv:1911.08727; Alimohammadi et al. 2022, arXiv:2210.17357"
    )
    promise: ClassVar[str] = (
        "Top-k's accuracy where each layer has a ratio of its own (Alimohammadi et al. 2022)."
    )
    seen: ClassVar[str] = "Not quite: small layers keep a hundredth of their own."
    example: ClassVar[str] = "layertopk:0.01+ef"

    ratio: float
    by: str = "size"

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)
        if self.by not in ("size", "norm"):
            raise PlanError(
                f"layertopk cannot share by {self.by}: give size or norm, as in layertopk:0.01,by=norm."
            )

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of the message to all others; see `AveragingMethod.bytes_sent`."""
        codec = self._codec(tuple(map(math.prod, shapes)))
        return predict_bytes(build("allgather", workers), codec, sum(codec.sizes), itemsize, rank)

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.architecture import Runner

        codec = self._codec(tuple(slot.numel for slot in bucket.slots))
        program = build("allgather", transport.size)
        return Runner(
            program,
            transport,
            numel=bucket.numel,
            dtype=bucket.dtype,
            codec=codec,
            tag=tag,
            device=bucket.device,
        )

    def _codec(self, sizes: tuple[int, ...]) -> LayeredTopK:
        return LayeredTopK(ratio=self.ratio, by=self.by, sizes=tuple(filter(None, sizes)))


@final
@dataclass(frozen=True)
class LayeredTopK(Codec):
    """The codec of one bucket's tensors: for `by=norm` an int32 count each, and then a top-k message each.

    Attributes:
        ratio: of the elements that are sent.
        by: `size` or `norm`.
        sizes: elements of each tensor, in the bucket's order; none is empty.
    """

    name: ClassVar[str] = "layertopk"
    combine: ClassVar[Combine] = "none"
    selects: ClassVar[bool] = True

    ratio: float
    by: str
    sizes: tuple[int, ...]

    @property
    def budget(self) -> int:
        """How many elements a message has."""
        return sum(map(TopK(self.ratio).kept, self.sizes))

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns budget · (4 + itemsize), and the counts where they are not known."""
        assert numel == sum(self.sizes), "a layered codec serves one bucket"
        return self._head + self.budget * (4 + itemsize)

    @property
    def _head(self) -> int:
        return COUNT_BYTES * len(self.sizes) if self.by == "norm" else 0

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Moves the largest elements of every tensor to the message; see `Codec.encode`."""
        import torch

        check(self, x, message)
        counts = self._shares(x) if self.by == "norm" else [TopK(self.ratio).kept(n) for n in self.sizes]
        if self.by == "norm":
            message[: self._head] = torch.tensor(counts, dtype=torch.int32).view(torch.uint8)
        parts = self._parts(message, counts, x.element_size())
        for part, count, tensor in zip(parts, counts, x.split_with_sizes(list(self.sizes)), strict=True):
            kernels.of(x).select_largest(tensor, part, count)

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        check(self, out, message)
        counts = self._counts(message)
        parts = self._parts(message, counts, out.element_size())
        for part, count, tensor in zip(parts, counts, out.split_with_sizes(list(self.sizes)), strict=True):
            if not kernels.of(out).scatter_largest(part, tensor, count, add):
                raise self._unreadable(out.numel())

    def normal_error(self, numel: int) -> float:
        """Returns that of the largest of all; see `Codec.normal_error`."""
        return TopK(self.ratio).normal_error(numel)

    def _parts(self, message: Tensor, counts: list[int], itemsize: int) -> Sequence[Tensor]:
        return message[self._head :].split_with_sizes([count * (4 + itemsize) for count in counts])

    def _counts(self, message: Tensor) -> list[int]:
        import torch

        if self.by == "size":
            return [TopK(self.ratio).kept(n) for n in self.sizes]
        counts: list[int] = message[: self._head].clone().view(torch.int32).tolist()
        fits = all(1 <= count <= size for count, size in zip(counts, self.sizes, strict=True))
        if not fits or sum(counts) != self.budget:
            raise self._unreadable(sum(self.sizes))
        return counts

    def _unreadable(self, numel: int) -> TensorError:
        return TensorError(
            f"{self.name} cannot decode this message for {numel} elements: its counts or indices do not fit "
            "the tensors; it was corrupted, or written by another plan."
        )

    def _shares(self, x: Tensor) -> list[int]:
        """Returns how many elements each tensor sends: one, and of the rest by its sum of magnitudes."""
        import torch

        parts = x.split_with_sizes(list(self.sizes))
        masses = [float(torch.linalg.vector_norm(p, 1, dtype=torch.float64)) for p in parts]
        return shares(masses, self.sizes, self.budget)


def shares(masses: Sequence[float], sizes: Sequence[int], budget: int) -> list[int]:
    """Shares a budget in proportion to masses, at least 1 and at most its size to each; the sum is the budget.

    >>> shares([1.0, 8.0, 1.0], [100, 4, 100], 16)
    [6, 4, 6]
    """
    total = sum(masses)
    if not 0 < total < float("inf"):
        masses, total = [float(size) for size in sizes], float(sum(sizes))
    counts = [1] * len(sizes)
    while (rest := budget - sum(counts)) > 0:
        open_ = [i for i, size in enumerate(sizes) if counts[i] < size]
        mass = sum(masses[i] for i in open_)
        before = sum(counts)
        for i in open_:
            share = int(rest * masses[i] / mass) if mass > 0 else 0
            counts[i] = min(sizes[i], counts[i] + share)
        if sum(counts) == before:  # less than one each: to the heaviest, one by one
            for i in sorted(open_, key=lambda i: (-masses[i], i))[:rest]:
                counts[i] += 1
    return counts
