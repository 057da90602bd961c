"""A codec that rotates at random and rounds to what is best for normal elements: DRIVE and EDEN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.answers import Rate
from tightwire.compression._rotated import (
    CENTROIDS,
    DISTORTION,
    centroids,
    check_rotated_block,
    filled,
    num_rows,
    pack_planes,
    padded,
    row_sums,
    rows_of,
    unpack_planes,
)
from tightwire.compression.checks import check
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.widened import narrowed, widened
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

SEED_BYTES = SCALE_BYTES = 4
# Blocks whose largest magnitude is outside wait as a whole: their squares, or what they decode to, would not fit.
LEAST_SENT, MOST_SENT = 2.0**-100, 2.0**100
SCALES = ("unbiased", "nearest")


@final
@dataclass(frozen=True)
class Eden(Codec):
    """Rotates every block by random signs and Hadamard transforms, and sends each element in so many bits.

    z = R(x); every zᵢ√d/‖z‖ is rounded to the centroids of a normal variable, and what is decoded is S·R⁻¹(Q), with
    S = ‖x‖²/⟨z, Q⟩, which makes it unbiased (EDEN, section 3; with one bit DRIVE, section 4.2), or the S nearest to x,
    ⟨z, Q⟩/‖Q‖², a contraction for `+ef` (DRIVE, section 3).

    The paper claims the error D/(1 − D), D being what rounding a normal variable to so many levels loses: 0.571, 0.133,
    0.036, 0.0096 of the square for 1 to 4 bits, whatever the input, where one that is not rotated first depends on it.
    Blocks are turned twice: after one turn few large elements would still have few magnitudes, and a bias. Blocks of
    the paper are whole tensors. Scales and levels are those of the authors' code (github.com/amitport). The message
    begins with its seed: workers must turn differently for errors to average.

    Attributes:
        bits: per element, 1 to 4.
        block: elements that are rotated together; a power of two.
        scale: `unbiased`, or `nearest`.
    """

    name: ClassVar[str] = "eden"
    title: ClassVar[str] = "random rotation, then the best few levels"
    paper: ClassVar[str] = "Vargaftik et al., DRIVE, arXiv:2105.08339; EDEN, arXiv:2108.08842"
    promise: ClassVar[str] = (
        "Unbiased, at the error of the best quantiser of as many bits (Vargaftik et al. 2022)."
    )
    seen: ClassVar[str] = "Seen: a bit or two without feedback come next to integers of 4 bits."
    proven: ClassVar[Rate | None] = Rate(
        bound="D/((1 − D)n) of the square is the error of a mean of n vectors of one length",
        assumes="rotations that are uniform; any vectors",
        speed_up="errors average: 1/n",
        paper="Vargaftik et al. 2022, arXiv:2108.08842, theorem 2.3",
    )
    example: ClassVar[str] = "eden:2"
    combine: ClassVar[Combine] = "lossy"

    bits: int = 1
    block: int = 4096
    scale: str = "unbiased"

    def __post_init__(self) -> None:
        check_rotated_block("eden", self.block)
        if self.bits not in CENTROIDS:
            raise PlanError(f"eden cannot send {self.bits} bits of an element: give 1 to 4, as in eden:2.")
        if self.scale not in SCALES:
            raise PlanError(f"eden:scale={self.scale} is none of {', '.join(SCALES)}.")

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Whether the scale makes it so."""
        return self.scale == "unbiased"

    @property
    def orthogonal(self) -> bool:  # type: ignore[override]
        """Whether what is sent is the nearest multiple of its direction."""
        return not self.unbiased

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 4 bytes for the seed, 4 per block, and the bits, those of the last block's filling included."""
        if numel == 0:
            return 0
        return (
            SEED_BYTES
            + SCALE_BYTES * num_rows(numel, self.block)
            + padded(numel, self.block) * self.bits // 8
        )

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Writes the message of `x`; see `Codec.encode`."""
        import torch

        check(self, x, message)
        if x.numel() == 0:
            return
        # An element and what it decodes to may have unlike signs: half of the range each, and their difference fits.
        limit = min(torch.finfo(x.dtype).max, torch.finfo(torch.float32).max) / 2
        self._write(x if x.dtype == torch.float32 else widened(x), message, seed & 0xFFFFFFFF, limit)
        x.sub_(self._decoded(message, x))

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the decoded message; see `Codec.decode`."""
        check(self, out, message)
        if out.numel() == 0:
            return
        values = self._decoded(message, out)
        if add:
            out.add_(values)
        else:
            out.copy_(values)

    def _decoded(self, message: Tensor, like: Tensor) -> Tensor:
        """Returns what a message decodes to in scratch memory, in the dtype of `like` or one that it widens to."""
        return narrowed(self._restored(message, like.numel()), like)

    def _write(self, x: Tensor, message: Tensor, seed: int, limit: float) -> None:
        """Writes the message of float32 `x`; blocks that are larger than the limit, or decode to more, wait."""
        import torch

        y = filled(x, self.block)
        largest = torch.cat([rows.abs().amax(1) for _, rows in rows_of(y, self.block)])
        sent = (largest >= LEAST_SENT) & (largest <= min(MOST_SENT, limit))
        finite = largest.isfinite()
        inverse = torch.where(sent, 1 / largest, 0.0)
        for first, rows in rows_of(y, self.block):
            rows.mul_(inverse[first : first + rows.shape[0], None]).nan_to_num_(0.0, 0.0, 0.0)
        kernels.of(x).rotate(y, self.block, seed, False)
        scales, planes = [], []
        for first, rows in rows_of(y, self.block):
            codes, scale = self._rounded(rows)
            here = slice(first, first + rows.shape[0])
            scale = torch.where(sent[here], scale * largest[here], 0.0)
            scales.append(torch.where(finite[here], scale, torch.nan))
            planes.append(pack_planes(codes.flatten(), self.bits))
        head = torch.tensor([seed - (1 << 32) * (seed >> 31)], dtype=torch.int32, device=x.device)
        scale = torch.cat(scales)
        message.copy_(torch.cat([head.view(torch.uint8), scale.view(torch.uint8), *planes]))
        if limit < MOST_SENT:
            self._restored(message, x.numel())
            y = kernels.scratch_tensor("rotated", y.numel(), torch.float32, x.device)
            most = torch.cat([rows.abs().amax(1) for _, rows in rows_of(y, self.block)])
            scale[most > limit] = 0.0
            message[SEED_BYTES:][: SCALE_BYTES * scale.numel()] = scale.view(torch.uint8)

    def _rounded(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the codes of rotated rows, uint8, and what their centroids are to be multiplied by."""
        import torch

        means, ends = centroids(self.bits, z.device)
        squares = row_sums(z.square())
        unit = (squares.double() / z.shape[1]).sqrt().float().clamp(min=torch.finfo(torch.float32).tiny)
        codes = torch.bucketize((z / unit).abs(), ends)
        levels = means[codes]
        dot = row_sums(z.abs() * levels).double()
        top, bottom = (squares.double(), dot) if self.unbiased else (dot, row_sums(levels.square()).double())
        scale = torch.where(bottom > 0, top / bottom, 0.0).float().squeeze(1)
        return (codes | (z < 0).long() << (self.bits - 1)).to(torch.uint8), scale

    def _restored(self, message: Tensor, numel: int) -> Tensor:
        """Returns what a message decodes to, in scratch memory."""
        import torch

        count = num_rows(numel, self.block)
        seed = int(message[:SEED_BYTES].clone().view(torch.int32)) & 0xFFFFFFFF
        scales = message[SEED_BYTES:][: SCALE_BYTES * count].clone().view(torch.float32)
        payload = message[SEED_BYTES + SCALE_BYTES * count :]
        y = kernels.scratch_tensor("rotated", padded(numel, self.block), torch.float32, message.device)
        means, _ = centroids(self.bits, message.device)
        table = torch.cat([means, -means])
        begin = 0
        for _, rows in rows_of(y, self.block):
            num_bytes = rows.numel() * self.bits // 8
            codes = unpack_planes(payload[begin : begin + num_bytes], self.bits)
            torch.index_select(table, 0, codes, out=rows.view(-1))
            begin += num_bytes
        kernels.of(y).rotate(y, self.block, seed, True)
        for first, rows in rows_of(y, self.block):
            rows.mul_(scales[first : first + rows.shape[0], None])
        return y[:numel]

    def contraction(self, numel: int) -> float | None:
        """Returns the least that the nearest multiple can carry; None where the scale is unbiased."""
        if self.unbiased:
            return None
        least, most = CENTROIDS[self.bits][0], CENTROIDS[self.bits][-1]
        return (least / most) ** 2 / min(self.block, max(padded(numel, self.block), 1))

    def normal_error(self, numel: int) -> float:
        """Returns D/(1 − D), or D, less the share that falls on the last block's filling."""
        lost = DISTORTION[self.bits]
        share = numel / padded(numel, self.block) if numel else 1.0
        return (lost / (1 - lost) if self.unbiased else lost) * share
