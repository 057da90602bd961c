"""A codec that sends the largest magnitudes of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression import _few_bits, _normal
from tightwire.compression._messages import BLOCK_INDEX_BYTES, unreadable
from tightwire.compression.checks import check, check_ratio
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.topk import TopK
from tightwire.compression.widened import narrowed, widened
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor


LARGEST_BLOCK = 1 << 16


@final
@dataclass(frozen=True)
class BlockTopK(Codec):
    """Sends the max(1, ⌈ratio·block⌉) elements of largest magnitude of every block, exactly or in few bits.

    Blocks are independent, so that no part of a bucket is forgotten, indices take two bytes, and the selection
    works in cache (ScaleCom's chunk-wise selection, with more than one element per chunk). Equal magnitudes go by
    lowest index; infinity and NaN count as largest. δ is the least share that a block keeps.

    With `values=int2` and its like an element costs ⌈log₂ block⌉ bits of index and so many of value, and a block four
    bytes: a sign, and a magnitude on a grid between the least and the largest that the block sends. SparseLoCo sends
    `blocktopk:0.015625,block=4096,values=int2`, 15 bits for an element; its quantiser's levels are fitted to the values
    instead.

    Attributes:
        ratio: of the elements that are sent, in (0, 1].
        block: elements that are ranked together; a multiple of 64.
        values: `full`, the bucket's own dtype, or `int2`, `int4` or `int8`.
    """

    name: ClassVar[str] = "blocktopk"
    title: ClassVar[str] = "largest magnitudes of every block"
    paper: ClassVar[str] = (
        "Chen et al. 2020, ScaleCom, arXiv:2104.11125, section 4 (chunk-wise selection); few-bit values: Sarfi et al. "
        "2025, SparseLoCo, arXiv:2508.15706"
    )
    promise: ClassVar[str] = "As good as top-k of all, chosen in chunks (Chen et al. 2020)."
    seen: ClassVar[str] = "A little worse here."
    example: ClassVar[str] = "blocktopk:0.01+ef"
    combine: ClassVar[Combine] = "none"
    selects: ClassVar[bool] = True
    orthogonal: ClassVar[bool] = True

    ratio: float
    block: int = 1024
    values: str = "full"

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)
        if self.block < 64 or self.block % 64 or self.block > LARGEST_BLOCK:
            raise PlanError(
                f"blocktopk cannot rank blocks of {self.block}: give a multiple of 64 from 64 to {LARGEST_BLOCK}."
            )
        if self.values not in ("full", *_few_bits.VALUE_BITS):
            raise PlanError(
                f"blocktopk cannot send values as {self.values}: give full, {', '.join(_few_bits.VALUE_BITS)}, as in "
                "blocktopk:0.01,values=int2."
            )

    @property
    def value_bits(self) -> int | None:
        """Bits of a value, or None where it travels whole."""
        return _few_bits.VALUE_BITS.get(self.values)

    @property
    def index_bits(self) -> int:
        """Bits of an index within a block, where values travel in few bits."""
        return (self.block - 1).bit_length()

    def kept(self, numel: int) -> tuple[int, int]:
        """Returns how many elements a whole block sends, and the last one, which has fewer elements or none."""
        share = TopK(self.ratio)
        return share.kept(self.block), share.kept(numel % self.block)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 2 + itemsize bytes for every element that is kept, or its bits, and 4 bytes for a block."""
        whole, last = self.kept(numel)
        if self.value_bits:
            entries, blocks = numel // self.block * whole + last, -(-numel // self.block)
            return _few_bits.message_bytes(blocks, entries, self.index_bits, self.value_bits)
        return (numel // self.block * whole + last) * (BLOCK_INDEX_BYTES + itemsize)

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Moves the largest elements of every block to the message; see `Codec.encode`."""
        check(self, x, message)
        if x.numel() == 0:
            return
        if self.value_bits:
            self._encode_few(x, message, self.value_bits)
        else:
            kernels.of(x).select_blocks(x, message, self.block, self.kept(x.numel()))

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes or adds the message; see `Codec.decode`."""
        check(self, out, message)
        if out.numel() and self.value_bits:
            places, values = self._read(message, out.numel(), self.value_bits)
            if places is None:
                raise unreadable(self, out)
            values = narrowed(values, out[: values.numel()]).to(out.dtype)
            if add:
                out.index_add_(0, places, values)
            else:
                out.zero_().index_copy_(0, places, values)
        elif out.numel() and not kernels.of(out).scatter_blocks(
            message, out, self.block, self.kept(out.numel()), add
        ):
            raise unreadable(self, out)

    def _encode_few(self, x: Tensor, message: Tensor, value_bits: int) -> None:
        """Writes indices and values of few bits, and leaves in `x` what these are off."""
        import torch

        is_wide = x.dtype == torch.float32
        wide = x if is_wide else widened(x)
        kept, numel = self.kept(x.numel()), x.numel()
        entries = numel // self.block * kept[0] + kept[1]
        chosen = kernels.scratch_tensor("few", entries * (BLOCK_INDEX_BYTES + 4), torch.uint8, x.device)
        kernels.of(wide).select_blocks(wide, chosen, self.block, kept)
        split = BLOCK_INDEX_BYTES * entries
        indices = chosen[:split].view(torch.int16).int() & 0xFFFF
        values = chosen[split:].clone().view(torch.float32)
        ends, codes = zip(
            *(_few_bits.quantised(rows, value_bits) for rows in self._rows(values, numel)), strict=True
        )
        flat_ends, flat_codes = torch.cat(ends), torch.cat([part.flatten() for part in codes])
        head = _few_bits.HEAD_BYTES * flat_ends.shape[0]
        message[:head] = flat_ends.flatten().view(torch.uint8)
        message[head:] = _few_bits.packed(indices << value_bits | flat_codes, self.index_bits + value_bits)
        places, sent = self._read(message, numel, value_bits)
        assert places is not None, "what was just written can be read"
        if is_wide:
            x[places] = values - sent
        else:
            x[places] -= narrowed(sent, x[: sent.numel()]).to(x.dtype)

    def _read(self, message: Tensor, numel: int, value_bits: int) -> tuple[Tensor | None, Tensor]:
        """Returns where the elements of a message lie, or None where that cannot be, and their values in float32."""
        import torch

        whole, last = self.kept(numel)
        blocks, entries = -(-numel // self.block), numel // self.block * whole + last
        head = _few_bits.HEAD_BYTES * blocks
        ends = message[:head].clone().view(torch.bfloat16).view(blocks, 2)
        numbers = _few_bits.unpacked(message[head:], entries, self.index_bits + value_bits)
        places, values, first = [], [], 0
        codes = self._rows(numbers & (1 << value_bits) - 1, numel)
        for inner, code in zip(self._rows(numbers >> value_bits, numel), codes, strict=True):
            size = self.block if first + self.block <= numel else numel - first
            if bool((inner.diff(dim=1) <= 0).any()) or bool((inner >= size).any()):
                return None, numbers
            rows = len(inner)
            starts = torch.arange(rows, device=message.device) * self.block + first
            at = first // self.block
            places.append((starts[:, None] + inner).flatten())
            values.append(_few_bits.restored(ends[at : at + rows], code, value_bits).flatten())
            first += rows * self.block
        return torch.cat(places), torch.cat(values)

    def _rows(self, entries: Tensor, numel: int) -> list[Tensor]:
        """Splits the elements of a message by block: those of whole blocks, and of a last, shorter one."""
        whole, last = self.kept(numel)
        split = numel // self.block * whole
        rows = [entries[:split].view(-1, whole)] if split else []
        return [*rows, entries[split:].view(1, last)] if last else rows

    def contraction(self, numel: int) -> float | None:
        """Returns the least share that a block keeps, or in few bits about that of its largest element alone."""
        sizes = {min(self.block, numel), numel % self.block} - {0}
        if self.value_bits:
            return 0.99 / max(sizes, default=1)
        return min((TopK(self.ratio).kept(size) / size for size in sizes), default=1.0)

    def normal_error(self, numel: int) -> float:
        """Returns that of the largest of all, and of their grid; see `Codec.normal_error`."""
        if self.value_bits:
            levels = 2 ** (self.value_bits - 1)
            return _normal.selecting(self.ratio, levels, min(self.block, max(numel, 1)))
        return _normal.selecting(self.ratio)
