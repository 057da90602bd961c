"""Buckets: flat memory in which several tensors travel as one, each tensor a view of its slot.

A `Layout` is a value: it says which element of which tensor lies where. A `Bucket` is its memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightwire.errors import TensorError

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}


def dtype_named(name: str) -> torch.dtype:
    """Returns a dtype by its name, such as `bfloat16`.

    Raises:
        TensorError: no dtype of that name.
    """
    if name not in _DTYPES:
        raise TensorError(f"{name!r} is no dtype of torch; known: {', '.join(sorted(_DTYPES))}.")
    return _DTYPES[name]


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one tensor lies in its bucket.

    Attributes:
        name: the tensor's name, by which all state is kept.
        shape: of the tensor.
        stride: of the tensor's view in the bucket, in elements: the tensor's own where it is dense in memory.
        offset: of its first element, in elements.
    """

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class BucketLayout:
    """One bucket's slots, gapless and in order, all of one dtype on one device."""

    slots: tuple[Slot, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def numel(self) -> int:
        """Number of elements of all slots together."""
        return sum(slot.numel for slot in self.slots)

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return self.numel * self.dtype.itemsize


Layout = tuple[BucketLayout, ...]


def plan_layout(tensors: Mapping[str, Tensor], partition: Sequence[Sequence[int]]) -> Layout:
    """Lays out named tensors in buckets.

    Args:
        tensors: floating-point tensors by name; `partition` speaks of them by their position.
        partition: each position exactly once; one bucket holds one dtype and one device.

    Raises:
        TensorError: a dtype that cannot be averaged, or a bucket that mixes dtypes or devices.
    """
    names = list(tensors)
    if sorted(p for bucket in partition for p in bucket) != list(range(len(names))):
        raise TensorError(
            f"a partition must name each of {len(names)} tensors exactly once; seen {partition}."
        )
    return tuple(_plan_bucket({names[p]: tensors[names[p]] for p in bucket}) for bucket in partition)


def on_host(layout: Layout) -> Layout:
    """Returns the same layout in host memory."""
    return tuple(replace(bucket, device=torch.device("cpu")) for bucket in layout)


def _plan_bucket(tensors: Mapping[str, Tensor]) -> BucketLayout:
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors.values()}
    if len(kinds) != 1:
        raise TensorError(
            f"a bucket holds one dtype on one device; seen {sorted(map(str, kinds))} for {list(tensors)}."
        )
    ((dtype, device),) = kinds
    if dtype not in FLOATS:
        raise TensorError(f"{list(tensors)} are {dtype}; only {', '.join(map(str, FLOATS))} can be averaged.")
    slots, offset = [], 0
    for name, tensor in tensors.items():
        slot = Slot(name=name, shape=tuple(tensor.shape), stride=_dense_stride(tensor), offset=offset)
        slots.append(slot)
        offset += slot.numel
    return BucketLayout(slots=tuple(slots), dtype=dtype, device=device)


def _dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """Returns the tensor's own strides if its elements fill their memory without gaps, else contiguous ones."""
    return tuple(torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride())


class Bucket:
    """The memory of one bucket.

    Attributes:
        layout: what lies where.
        flat: (numel,) the memory itself.
        views: each slot's tensor, sharing that memory, by name.
    """

    def __init__(self, layout: BucketLayout, flat: Tensor | None = None) -> None:
        self.layout = layout
        self.flat = (
            torch.zeros(layout.numel, dtype=layout.dtype, device=layout.device) if flat is None else flat
        )
        self.views: dict[str, Tensor] = {
            slot.name: self.flat.as_strided(slot.shape, slot.stride, slot.offset) for slot in layout.slots
        }

    def pack(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies tensors into their slots."""
        for name, tensor in tensors.items():
            self.views[name].copy_(tensor)

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies slots into tensors, in place."""
        for name, tensor in tensors.items():
            tensor.copy_(self.views[name])
